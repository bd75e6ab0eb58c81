"""The launch plan: its invariants, and that the extension's twin agrees byte by byte."""

import ctypes
import itertools
from collections.abc import Callable

import numpy as np
import pytest
from executor import build, has_compiler

from cga_lightning.ops._plan import ITEM_BYTES, Addresses, Device, Plan

DEVICES = (Device((7, 5), 40), Device((8, 6), 84), Device((9, 0), 132))
PARTS = ("project", "products", "solve", "combine")
BOUNDS = ((0, 1), (0, 7, 7, 40), (0, 4096, 8192, 1_000_000), (0, 200_000_003), tuple(range(0, 16_000, 16)))


def _plan(cross: int, dtype: str = "f32", bounds: tuple[int, ...] = (0, 100_000), **options: object) -> Plan:
    base = int(options.pop("base", 1 << 30))  # type: ignore[call-overload]
    device = options.pop("device", DEVICES[2])
    addresses = Addresses([base + 4096 * k for k in range(cross)], 2 << 30, 3 << 30, 4 << 30, 5 << 30)
    return Plan(dtype, cross, bounds, device, addresses, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def twin() -> Callable[[Plan, int], str]:
    if not has_compiler():
        pytest.skip("g++ is not installed")
    library = ctypes.CDLL(str(build(source="plan.cpp")))
    library.plan_text.restype = ctypes.c_char_p

    def text(plan: Plan, part: int) -> str:
        rows, *others = plan.addresses
        found = library.plan_text(
            plan.dtype.encode(),
            ITEM_BYTES[plan.dtype],
            np.array(plan.bounds, np.int64).ctypes,
            ctypes.c_int64(plan.segments),
            np.array(rows, np.uint64).ctypes,
            plan.cross,
            np.array(others, np.uint64).ctypes,
            np.array([*plan.device.capability, plan.device.processors], np.int32).ctypes,
            ctypes.c_double(plan.margin),
            ctypes.c_double(plan.ridge),
            plan.exact,
            plan.passes or 0,
            part,
        )
        return str(found.decode())

    return text


def _text(plan: Plan, part: int) -> str:
    lines = [str(plan.workspace_bytes)]
    for launch in getattr(plan, PARTS[part])():
        kernel, grid, block, shared, arguments, together = launch
        hexes = [bytes(argument).hex() for argument in arguments]
        lines.append(" ".join([kernel, *map(str, (grid, block, shared, int(together))), *hexes]))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("dtype", ITEM_BYTES)
@pytest.mark.parametrize("cross", [1, 2, 4, 8, 9, 15, 16, 23, 24, 39, 40, 64])
def test_the_extension_plans_the_same(twin: Callable[[Plan, int], str], cross: int, dtype: str) -> None:
    options = itertools.product(BOUNDS, DEVICES, (1 << 30, (1 << 30) + 8), (0.0, 1e-6), (None, 1, 2))
    for index, (bounds, device, base, ridge, passes) in enumerate(options):
        plan = _plan(
            cross,
            dtype,
            bounds,
            device=device,
            base=base,
            ridge=ridge,
            passes=passes,
            margin=0.5,
            exact=index % 5 == 0,
        )
        assert twin(plan, index % 4) == _text(plan, index % 4)


@pytest.mark.parametrize(
    ("cross", "dtype", "device", "options", "kernel"),
    [
        (1, "f32", DEVICES[2], {}, "gram_rows3_f32"),
        (8, "bf16", DEVICES[0], {}, "gram_rows9_bf16"),
        (9, "f16", DEVICES[0], {}, "gram_tile_f16"),
        (9, "f16", DEVICES[1], {}, "gram_mma2_f16"),
        (64, "f32", DEVICES[2], {}, "gram_mma9_f32"),
        (2, "f64", DEVICES[2], {}, "gram_exact_f64"),
        (2, "f32", DEVICES[2], {"ridge": 1e-7}, "gram_exact_f32"),
        (2, "f32", DEVICES[2], {"exact": True}, "gram_exact_f32"),
        (2, "f32", DEVICES[2], {"base": (1 << 30) + 4}, "gram_exact_f32"),
        (2, "f32", DEVICES[2], {"bounds": (0, 3, 9)}, "gram_exact_f32"),
    ],
)
def test_the_kernel_suits_the_problem(
    cross: int, dtype: str, device: Device, options: dict[str, object], kernel: str
) -> None:
    assert _plan(cross, dtype, device=device, **{"ridge": 1e-6, **options}).gram.kernel == kernel


def test_a_small_problem_takes_one_launch_and_a_large_one_two() -> None:
    small, large = _plan(4, ridge=1e-6), _plan(4, ridge=1e-6, bounds=(0, 10_000_000))
    assert [launch.kernel for launch in small.project()] == ["prepare", "gram_rows5_f32"]
    assert [launch.kernel for launch in large.project()] == ["prepare", "gram_rows5_f32", "combine_f32"]


@pytest.mark.parametrize("cross", [1, 8, 16, 33, 64])
def test_shared_memory_fits_every_device(cross: int) -> None:
    for launch in _plan(cross, ridge=1e-6).project():
        assert launch.shared_bytes <= (52 * 1024 if cross > 39 else 48 * 1024)


def test_slots_are_whole_vectors_and_bounded() -> None:
    """In number, or in length where totals are float32: partial sums take under 2 % of the memory of the rows."""
    for length, cross in itertools.product((1, 5000, 10**6, 10**9), (1, 64)):
        plan = _plan(cross, bounds=(0, length))
        assert plan.slot_length % 4096 == 0
        assert plan.slots <= 1024 if cross < 40 else plan.slot_length <= 4 * 4096
        assert length < 10**5 or plan.workspace_bytes < 0.02 * 4 * length * (cross + 1)
