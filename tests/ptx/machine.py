"""Builds what nvcc makes of csrc/cuda, PTX and host code, into a library that runs on the CPU, and runs plans on it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from cases import Case, decode
from executor import CSRC, DEVICE, ORDERS, SCHEDULES, Arrays, Schedule
from translate import to_cpp

from cga_lightning.ops import _plan

HERE = Path(__file__).parent
SIMT = HERE.parent / "simt"
BUILD = HERE.parents[1] / "build" / "ptx"
UNITS = ("common", "f32", "f16", "bf16", "f64")
# The host code and the PTX of the extension: the same sources and options, for one virtual architecture.
NVCC = ("-O3", "-std=c++20", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-Xcompiler=-fPIC")
NVCC += ("-gencode=arch=compute_90,code=compute_90", f"-I{Path(torch.__file__).parent / 'include'}")
GCC = ("-std=c++17", "-O1", "-w", "-fno-strict-aliasing", "-ffp-contract=off", "-fno-gnu-unique", "-fPIC", "-DCGA_SIMT")


def missing() -> str | None:
    """Return why nothing can be built here, or None."""
    absent = [program for program in ("nvcc", "g++") if shutil.which(program) is None]
    return f"{' and '.join(absent)} not found: the PTX of the CUDA kernels cannot be run" if absent else None


def build(units: Sequence[str] = UNITS, *, csrc: Path = CSRC, root: Path = BUILD) -> Path:
    """Compile the units with the host code; the results are kept by the hash of the sources.

    Args:
        units: what to translate, "common" among them; launches of other kernels fail.
        csrc: the sources, which may be altered ones.
        root: folder of the results.

    """
    sources = [path for folder in (csrc / "kernels", csrc / "cuda") for path in sorted(folder.glob("*"))]
    sources += [path for folder in (HERE, SIMT) for path in sorted(folder.glob("*.[hc]*"))]
    texts = [" ".join((*NVCC, *GCC)), *(path.read_text() for path in (*sources, HERE / "translate.py"))]
    folder = root / hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / f"table_{'_'.join(units)}.cpp"
    table.write_text(_table(units))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = [pool.submit(_unit, unit, csrc, folder) for unit in units]
        parts.append(pool.submit(_nvcc, _driver(csrc, folder), folder))
        parts += [pool.submit(_gcc, path, folder) for path in (SIMT / "simt.cpp", table, HERE / "runtime.cpp")]
        objects = [name for part in parts for name in part.result()]
    # Bound to each other: torch has brought the real CUDA runtime into this process.
    return folder / _made(["g++", "-shared", "-Wl,-Bsymbolic", *objects], f"{table.stem}.so", folder)


def _unit(unit: str, csrc: Path, folder: Path) -> list[str]:
    path = csrc / "cuda" / f"kernels_{unit}.cu"
    host = _nvcc(path, folder)
    translated = folder / f"ptx_{unit}.cpp"
    translated.write_text(to_cpp((folder / path.stem / f"{path.stem}.ptx").read_text(), unit))
    return [*host, *_gcc(translated, folder)]


def _driver(csrc: Path, folder: Path) -> Path:
    driver = folder / "driver.cu"
    driver.write_text((HERE / "driver.cu").read_text().replace("../../csrc", str(csrc)))
    return driver


def _table(units: Sequence[str]) -> str:
    """Of what is not translated the host code has empty tables."""
    lists = ", ".join(f"&ptx_{unit}" for unit in units)
    absent = [f"extern const std::vector<Kernel> kernels_{unit}{{}};" for unit in UNITS if unit not in units]
    return f"""#include "ptx.h"
extern const std::vector<simt::Entry> {", ".join(f"ptx_{unit}" for unit in units)};
std::vector<simt::Entry> ptx_all() {{
  std::vector<simt::Entry> all;
  for (const auto* list : {{{lists}}}) all.insert(all.end(), list->begin(), list->end());
  return all;
}}
namespace cga::cuda {{
struct Kernel {{ const char* name; const void* function; }};
{" ".join(absent)}
}}
"""


def _nvcc(path: Path, folder: Path) -> list[str]:
    kept = folder / path.stem
    kept.mkdir(exist_ok=True)
    return [_made(["nvcc", *NVCC, "--keep", f"--keep-dir={kept}", "-c", str(path)], f"{path.stem}.host.o", folder)]


def _gcc(path: Path, folder: Path) -> list[str]:
    return [_made(["g++", *GCC, f"-I{HERE}", f"-I{SIMT}", "-c", str(path)], f"{path.stem}.o", folder)]


def _made(command: Sequence[str], name: str, folder: Path) -> str:
    """Run a compiler unless its result is there; the name of the result."""
    if not (folder / name).exists():
        partial = f"{os.getpid()}.{name}"
        done = subprocess.run([*command, "-o", partial], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        (folder / partial).rename(folder / name)
    return name


class Machine:
    """The library at work."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.ptx_run.restype = ctypes.c_char_p
        self._library.ptx_launched.restype = ctypes.c_char_p
        self._library.ptx_accesses.restype = ctypes.c_uint64

    def accesses(self) -> dict[int, int]:
        """How often threads have read or written arrays since the last call, by bytes."""
        return {size: self._library.ptx_accesses(size) for size in (1, 2, 4, 8, 16)}

    @property
    def launched(self) -> set[str]:
        """Kernels that have run so far."""
        return set(self._library.ptx_launched().decode().split())

    def run(
        self,
        case: Case,
        part: str = "project",
        schedule: Schedule = SCHEDULES[0],
        device: _plan.Device = DEVICE,
        passes: int = 0,
    ) -> tuple[Arrays, _plan.Plan]:
        """Run a part of the projection of a case; what the host code reports is a RuntimeError.

        The plan is Python's, byte by byte that of the host code.
        """
        rows = replace(case, memory=[]).encoded()
        arrays = Arrays(rows[:-1], rows[-1], case.bounds)
        options = {"margin": case.margin, "ridge": case.ridge, "passes": passes or None}
        plan = arrays.plan(case.dtype, device, **options)
        self.launch(arrays, plan, part, schedule)
        return arrays, plan

    def launch(self, arrays: Arrays, plan: _plan.Plan, part: str, schedule: Schedule) -> None:
        """Run a part again on the arrays as they are."""
        self._library.ptx_forget()
        results = (arrays.own, arrays.workspace, arrays.dual, arrays.status, arrays.gram)
        for array in (*arrays.rows, *results):
            self._library.ptx_announce(ctypes.c_void_p(array.ctypes.data), ctypes.c_uint64(array.nbytes))
        self._library.ptx_schedule(ORDERS[schedule.order], schedule.seed, schedule.resident)
        major, minor = plan.device.capability
        error = self._library.ptx_run(
            plan.dtype.encode(),
            _plan.ITEM_BYTES[plan.dtype],
            (ctypes.c_int64 * len(plan.bounds))(*plan.bounds),
            ctypes.c_int64(plan.segments),
            (ctypes.c_uint64 * plan.cross)(*(row.ctypes.data for row in arrays.rows)),
            plan.cross,
            (ctypes.c_uint64 * 5)(*(array.ctypes.data for array in results)),
            (ctypes.c_int * 3)(major, minor, plan.device.processors),
            ctypes.c_double(plan.margin),
            ctypes.c_double(plan.ridge),
            plan.passes or 0,
            part.encode(),
        ).decode()
        if error:
            raise RuntimeError(error)


def errors(case: Case, arrays: Arrays, expected: np.ndarray, grams: Sequence[np.ndarray]) -> tuple[float, float]:
    """The largest error of an inner product, of the norms of its rows, and of g~, of the largest row."""
    products = gradient = 0.0
    for low, high, gram, found in zip(case.bounds, case.bounds[1:], grams, arrays.gram, strict=False):
        norms = np.sqrt(np.diag(gram))
        products = max(products, float(np.abs((found - gram) / np.maximum(np.outer(norms, norms), 1e-300)).max()))
        lengths = np.linalg.norm(case.rows[:, low:high], axis=1)
        size = max(lengths.max(), case.margin * lengths[:-1].sum(), 1e-300)
        gap = decode(arrays.own, case.dtype)[low:high] - expected[low:high]
        gradient = max(gradient, float(np.linalg.norm(gap) / size))
    return products, gradient
