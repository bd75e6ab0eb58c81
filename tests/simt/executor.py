"""Builds the executor with g++ and runs launch plans on it: device code of ``csrc/kernels`` on the CPU."""

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cga_lightning.ops import _plan

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
KERNELS = CSRC / "kernels"
BUILD = HERE.parents[1] / "build" / "simt"
FLAGS = (
    *("-std=c++17", "-g1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-fno-strict-aliasing"),
    "-Wno-maybe-uninitialized",  # the next step's registers, which the last step does not load
    "-fno-gnu-unique",  # several executors in one process keep apart
)
ORDERS = {"forward": 0, "reverse": 1, "random": 2}
DEVICE = _plan.Device(capability=(9, 0), processors=4)


@dataclass(frozen=True)
class Schedule:
    """The order in which blocks and threads run, and how many blocks are alive at once."""

    order: str = "forward"
    seed: int = 0
    resident: int = 3


SCHEDULES = (Schedule(), Schedule("reverse", resident=1), Schedule("random", seed=5, resident=7))


class _LaunchShape(ctypes.Structure):
    _fields_ = [
        ("grid", ctypes.c_uint),
        ("block", ctypes.c_uint),
        ("shared_bytes", ctypes.c_size_t),
        ("resident", ctypes.c_uint),
        ("order", ctypes.c_int),
        ("seed", ctypes.c_uint),
    ]


def build(
    flags: Sequence[str] = ("-O2",),
    *,
    kernels: Path = KERNELS,
    source: str = "driver.cpp",
    root: Path = BUILD,
) -> Path:
    """Compile the executor; the result is kept by the hash of its sources and flags."""
    headers = [*sorted(kernels.glob("*.cuh")), *sorted(HERE.glob("*.h")), CSRC / "cuda" / "plan.h"]
    sources = [*headers, HERE / "simt.cpp", HERE / source]
    digest = hashlib.sha256("\0".join([*flags, *(path.read_text() for path in sources)]).encode())
    target = root / digest.hexdigest()[:16] / "simt.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        # The executor itself is not instrumented: what it does between two threads is no access of theirs.
        sanitizers = {"address": "-DSIMT_ADDRESS", "thread": "-DSIMT_THREAD"}
        watched = [define for name, define in sanitizers.items() if f"sanitize={name}" in " ".join(flags)]
        _compile(["-O2", *watched, "-c", str(HERE / "simt.cpp"), "-o", "simt.o"], target.parent)
        _compile([*flags, f"-I{kernels}", "-c", str(HERE / source), "-o", "kernels.o"], target.parent)
        partial = target.with_name(f"{os.getpid()}.so")
        _compile([*flags, "-shared", "kernels.o", "simt.o", "-o", str(partial)], target.parent)
        partial.rename(target)
    return target


def _compile(arguments: Sequence[str], folder: Path) -> None:
    subprocess.run(["g++", *FLAGS, "-DCGA_SIMT", "-fPIC", f"-I{HERE}", *arguments], check=True, cwd=folder)


def requested_flags() -> list[str]:
    """Return compiler flags from the environment: ``sanitize.py`` asks for instrumented builds."""
    return os.environ.get("CGA_SIMT_FLAGS", "-O2").split()


def has_compiler() -> bool:
    return shutil.which("g++") is not None


class Executor:
    """A loaded executor."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.simt_launch.restype = ctypes.c_char_p
        self._library.simt_size.restype = ctypes.c_size_t

    def size(self, table: bool) -> int:
        return self._library.simt_size(int(table))

    def launch(self, launch: _plan.Launch, schedule: Schedule) -> None:
        """Run one launch; a rule of CUDA that it breaks is a RuntimeError."""
        resident = launch.grid if launch.cooperative else schedule.resident
        order = ORDERS[schedule.order]
        shape = _LaunchShape(launch.grid, launch.block, launch.shared_bytes, resident, order, schedule.seed)
        arguments = (ctypes.c_void_p * len(launch.arguments))(*map(ctypes.addressof, launch.arguments))
        error = self._library.simt_launch(launch.kernel.encode(), shape, arguments)
        if error:
            raise RuntimeError(f"{launch.kernel}: {error.decode()}")


class Arrays:
    """The rows, own gradient, workspace and results of one problem, as a GPU's memory would hold them.

    Every array has its exact size, and what the kernels must write starts as NaN or nonsense.
    """

    def __init__(self, rows: Sequence[np.ndarray], own: np.ndarray, bounds: Sequence[int]) -> None:
        self.rows, self.own, self.bounds = list(rows), own, tuple(bounds)
        segments, cross = len(self.bounds) - 1, len(rows)
        self.dual = np.full((segments, cross), np.nan)
        self.status = np.full(segments, -7, np.int32)
        self.gram = np.full((segments, cross + 1, cross + 1), np.nan)
        self.workspace = np.empty(0, np.uint8)

    def plan(self, dtype: str, device: _plan.Device = DEVICE, **options: Any) -> _plan.Plan:
        def made() -> _plan.Plan:
            rows = [row.ctypes.data for row in self.rows]
            addresses = _plan.Addresses(
                rows,
                self.own.ctypes.data,
                self.workspace.ctypes.data,
                self.dual.ctypes.data,
                self.status.ctypes.data,
                self.gram.ctypes.data,
            )
            return _plan.Plan(dtype, len(rows), self.bounds, device, addresses, **options)

        needed = made().workspace_bytes
        if self.workspace.size != needed:
            self.workspace = np.full(needed, 0xFF, np.uint8)
        return made()

    def run(self, executor: Executor, launches: Sequence[_plan.Launch], schedule: Schedule = SCHEDULES[0]) -> None:
        for launch in launches:
            executor.launch(launch, schedule)
