"""What a projection launches on a CUDA device: kernels, grids, shared memory, arguments and workspace.

Arithmetic on numbers and addresses, without torch, CuPy or a device: the CuPy path launches it, the tests run it on the
CPU, and `csrc/cuda/plan.h` is its twin for the extension (a test holds the two together).
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

ROW_ADDRESSES = 72  # room for row addresses in Problem
SLOTS_PER_GROUP = 32
TABLE_VALUES = 384
ITEM_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "f64": 8}
SOLVE, COMBINE = 1, 2  # what a Gram kernel goes on to do
EXACT_BELOW = 1e-6  # below this ridge the rounding of a float32 product would decide which rows are dependent
SHARED_WITHOUT_ASKING = 48 * 1024  # bytes of shared memory; a kernel has to ask for more

# Shortest slot, in columns: enough work for a block, and a multiple of every vector and warp step.
_SLOT_UNIT = 4096
# Beyond so many slots they grow longer instead. Not with many rows: their totals in a slot may be float32.
_SLOTS = 1024
_MANY_ROWS, _LONGEST_SLOT = 40, 4  # in units
# Below this, one cooperative launch saves more than a second pass with more blocks gains.
_COOPERATIVE_BYTES = 20_000_000
# A Schur complement below this is rounding: the row depends on the active ones.
_DEPENDENT = 1e-14
_ALIGNMENT = 16  # bytes of a vector load
_ARRAY_ALIGNMENT = 256  # bytes, in the workspace
_FLAG_BYTES = 16  # of shared memory, before what a kernel works in
_TILE = 8  # rows on a side of a block of products
_WARP = 32
_ROWS_THREADS, _MMA_THREADS, _TILE_THREADS = 256, 128, 256
_PREPARE_THREADS, _SOLVE_THREADS, _COMBINE_THREADS = 256, 256, 256


class Problem(ctypes.Structure):
    """The argument of every kernel; `csrc/kernels/problem.cuh` declares the same bytes."""

    _fields_ = [
        ("rows", ctypes.c_uint64 * ROW_ADDRESSES),
        *((name, ctypes.c_uint64) for name in ("own", "offsets", "first_slot", "slot_arrivals")),
        *((name, ctypes.c_uint64) for name in ("segment_arrivals", "ready", "partials", "gram", "dual", "status")),
        *((name, ctypes.c_double) for name in ("margin", "ridge", "floor")),
        *((name, ctypes.c_int64) for name in ("slot_length", "slots")),
        *((name, ctypes.c_int32) for name in ("cross", "segments", "phases", "aligned")),
    ]


class Table(ctypes.Structure):
    """A piece of the segment table, the second argument of `prepare`."""

    _fields_ = [
        ("first", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("values", ctypes.c_int64 * TABLE_VALUES),
    ]


class Launch(NamedTuple):
    """One kernel launch."""

    kernel: str
    grid: int
    block: int
    shared_bytes: int
    arguments: tuple[ctypes.Structure, ...]
    cooperative: bool = False


class Device(NamedTuple):
    """What the plan has to know of a device."""

    capability: tuple[int, int]
    processors: int


class Addresses(NamedTuple):
    """Device addresses. `gram` may be 0: the matrices are then kept in the workspace."""

    rows: Sequence[int]
    own: int
    workspace: int
    dual: int = 0
    status: int = 0
    gram: int = 0


class _Gram(NamedTuple):
    kernel: str
    threads: int
    work_bytes: int  # shared memory of its own
    tiles: int = 1  # blocks that share a slot


@dataclass(frozen=True)
class Plan:
    """The launches of one projection of K cross-gradients of a type over segments.

    Attributes:
        dtype: "f32", "f16", "bf16" or "f64".
        cross: number of cross-gradients K.
        bounds: segment bounds, s + 1 of them from 0 to d.
        addresses: where rows, results and workspace are. Without a workspace only its size can be asked for.
        margin: lower bound of the dual variables.
        ridge: relative to the squared norm of each row.
        exact: form the products in float64 even if the ridge does not ask for it.
        slot_unit: shortest slot, in columns. Tests shorten it.
        passes: 1 for a cooperative launch, 2 for two launches; by default what suits the size.

    """

    dtype: str
    cross: int
    bounds: tuple[int, ...]
    device: Device
    addresses: Addresses
    margin: float = 0.0
    ridge: float = 0.0
    exact: bool = False
    slot_unit: int = _SLOT_UNIT
    passes: int | None = None

    @property
    def segments(self) -> int:
        """Number of segments s."""
        return len(self.bounds) - 1

    @property
    def pairs(self) -> int:
        """Inner products of K + 1 rows."""
        return (self.cross + 1) * (self.cross + 2) // 2

    @cached_property
    def aligned(self) -> bool:
        """Whether every row starts at a multiple of 16 bytes in every segment."""
        starts = [bound * ITEM_BYTES[self.dtype] for bound in self.bounds[:-1]]
        return all(address % _ALIGNMENT == 0 for address in (*self.addresses.rows, self.addresses.own, *starts))

    @cached_property
    def slot_length(self) -> int:
        """Columns of a slot: from d and K alone, so that results do not depend on the device."""
        units = max(1, -(-self.bounds[-1] // (_SLOTS * self.slot_unit)))
        return self.slot_unit * (units if self.cross < _MANY_ROWS else min(units, _LONGEST_SLOT))

    @cached_property
    def first_slot(self) -> tuple[int, ...]:
        """Index of the first slot of every segment, and the number of slots; an empty segment has one."""
        first = [0]
        for low, high in zip(self.bounds, self.bounds[1:], strict=False):
            first.append(first[-1] + max(1, -(-(high - low) // self.slot_length)))
        return tuple(first)

    @property
    def slots(self) -> int:
        """Number of slots."""
        return self.first_slot[-1]

    @cached_property
    def gram(self) -> _Gram:
        """The kernel that forms the inner products."""
        rows = self.cross + 1
        if self.dtype == "f64" or self.exact or self.ridge < EXACT_BELOW or not self.aligned:
            return self._tile("exact")
        if rows <= 9:
            wide = next(size for size in (3, 5, 9) if rows <= size)
            totals = _ROWS_THREADS // _WARP * wide * (wide + 1) // 2
            return _Gram(f"gram_rows{wide}_{self.dtype}", _ROWS_THREADS, 8 * totals)
        if self.device.capability < (8, 0):
            return self._tile("tile")
        blocks = next(size for size in (2, 3, 5, 9) if rows <= _TILE * size)
        tiles = (blocks // 2) * (blocks - blocks // 2 + 1) + blocks % 2
        totals = _MMA_THREADS // _WARP * tiles * 2 * _TILE * _TILE
        return _Gram(f"gram_mma{blocks}_{self.dtype}", _MMA_THREADS, totals * (4 if blocks == 9 else 8))

    def _tile(self, kind: str) -> _Gram:
        blocks = self.cross // _TILE + 1
        totals = _TILE_THREADS // _WARP * _TILE * _TILE
        return _Gram(f"gram_{kind}_{self.dtype}", _TILE_THREADS, 8 * totals, blocks * (blocks + 1) // 2)

    @property
    def cooperative(self) -> bool:
        """Whether one launch does both passes."""
        if "rows" not in self.gram.kernel and "mma" not in self.gram.kernel:
            return False
        size = (self.cross + 1) * self.bounds[-1] * ITEM_BYTES[self.dtype]
        return self.passes == 1 or (self.passes is None and size <= _COOPERATIVE_BYTES)

    @cached_property
    def _layout(self) -> dict[str, tuple[int, int]]:
        """Offset and bytes of every array in the workspace."""
        rows = self.cross + 1
        sizes = {
            "offsets": 16 * (self.segments + 1),  # and first_slot behind it
            "slot_arrivals": 4 * self.slots,
            "segment_arrivals": 4 * self.segments,
            "ready": 4 * self.segments,
            "partials": 8 * self.slots * self.pairs,
            "gram": 8 * self.segments * rows * rows,
        }
        layout, end = {}, 0
        for name, size in sizes.items():
            layout[name] = (end, size)
            end += -(-size // _ARRAY_ALIGNMENT) * _ARRAY_ALIGNMENT
        return layout

    @property
    def workspace_bytes(self) -> int:
        """Size of the workspace; its contents do not matter."""
        start, size = self._layout["gram"]
        return start + size

    def problem(self, phases: int) -> Problem:
        """Return the argument of the kernels."""
        base = self.addresses.workspace
        rows = [*self.addresses.rows, *[self.addresses.own] * (ROW_ADDRESSES - self.cross)]
        problem = Problem(
            rows=(ctypes.c_uint64 * ROW_ADDRESSES)(*rows),
            first_slot=base + 8 * (self.segments + 1),
            **{name: base + start for name, (start, _) in self._layout.items()},
        )
        problem.own, problem.dual, problem.status = (
            self.addresses.own,
            self.addresses.dual,
            self.addresses.status,
        )
        problem.gram = self.addresses.gram or problem.gram
        problem.margin, problem.ridge = self.margin, self.ridge
        # A ridge keeps every Schur complement above it; far below it there is only rounding.
        problem.floor = max(_DEPENDENT, self.ridge / 4 if self.ridge >= EXACT_BELOW else 0.0)
        problem.slot_length, problem.slots = self.slot_length, self.slots
        problem.cross, problem.segments = self.cross, self.segments
        problem.phases, problem.aligned = phases, self.aligned
        return problem

    def project(self) -> list[Launch]:
        """Return the launches of the whole projection."""
        if self.cooperative:
            return [*self._prepare(), self._gram_launch(SOLVE | COMBINE)]
        return [*self._prepare(), self._gram_launch(SOLVE), self._combine_launch()]

    def products(self) -> list[Launch]:
        """Return the launches that only form the inner products."""
        return [*self._prepare(), self._gram_launch(0)]

    def solve(self) -> list[Launch]:
        """Return the launch that solves the quadratic programs of given inner products."""
        return [Launch("solve", self.segments, _SOLVE_THREADS, self._solver_bytes, (self.problem(SOLVE),))]

    def combine(self) -> list[Launch]:
        """Return the launches that add the weighted rows to the own gradient."""
        return [*self._prepare(), self._combine_launch()]

    def _prepare(self) -> list[Launch]:
        values = (*self.bounds, *self.first_slot)
        launches = []
        for first in range(0, len(values), TABLE_VALUES):
            part = values[first : first + TABLE_VALUES]
            table = Table(first, len(part), (ctypes.c_int64 * TABLE_VALUES)(*part))
            launches.append(Launch("prepare", 1, _PREPARE_THREADS, 0, (self.problem(0), table)))
        return launches

    def _gram_launch(self, phases: int) -> Launch:
        together = bool(phases & COMBINE)
        shared = _FLAG_BYTES + max(self.gram.work_bytes, self._solver_bytes, self._combine_bytes)
        # The registers of these kernels allow two blocks on a processor, and so does this much shared memory.
        resident = self.device.processors * (2 if shared <= SHARED_WITHOUT_ASKING else 1)
        grid = min(self.slots, resident) if together else self.slots * self.gram.tiles
        return Launch(self.gram.kernel, grid, self.gram.threads, shared, (self.problem(phases),), together)

    def _combine_launch(self) -> Launch:
        kernel, shared = f"combine_{self.dtype}", _FLAG_BYTES + self._combine_bytes
        return Launch(kernel, self.slots, _COMBINE_THREADS, shared, (self.problem(COMBINE),))

    @property
    def _solver_bytes(self) -> int:
        size = self.cross + 1
        return 8 * (size * size + size + 2 * self.cross + 1) + 4 * (self.cross + 1)

    @property
    def _combine_bytes(self) -> int:
        return 16 * self.cross + 8
