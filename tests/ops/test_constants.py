"""What Python and C++ must agree on, read from the sources of both: no compiler is needed."""

from __future__ import annotations

import re
from itertools import product
from math import ceil
from pathlib import Path

import pytest
import torch

from cga_lightning import ops
from cga_lightning.compression import levels
from cga_lightning.core import layout
from cga_lightning.ops import _checks, _nvrtc, _plan, _qp, _reference
from cga_lightning.ops._plan import Addresses, Device, Plan

CSRC = Path(__file__).parents[2] / "csrc"
FILES = sorted(str(path.relative_to(CSRC)) for path in CSRC.rglob("*.*"))

NAMED = [
    ("checks.h", "kMaxRows", ops.MOST_ROWS),
    ("kernels/problem.cuh", "kRowAddresses", _plan.ROW_ADDRESSES),
    ("kernels/problem.cuh", "kSlotsPerGroup", _plan.SLOTS_PER_GROUP),
    ("kernels/problem.cuh", "kTableValues", _plan.TABLE_VALUES),
    ("kernels/gram_rows.cuh", "kRowsThreads", _plan._ROWS_THREADS),
    ("kernels/gram_mma.cuh", "kMmaThreads", _plan._MMA_THREADS),
    ("kernels/gram_tile.cuh", "kTileThreads", _plan._TILE_THREADS),
    ("kernels/gram_tile.cuh", "kTile", _plan._TILE),
    ("kernels/solve.cuh", "kOptimal", _qp._OPTIMAL),
    ("cuda/plan.h", "kSlotUnit", _plan._SLOT_UNIT),
    ("cuda/plan.h", "kSlots", _plan._SLOTS),
    ("cuda/plan.h", "kLongestSlot", _plan._LONGEST_SLOT),
    ("cuda/plan.h", "kManyRows", _plan._MANY_ROWS),
    ("cuda/plan.h", "kCooperativeBytes", _plan._COOPERATIVE_BYTES),
    ("cuda/plan.h", "kExactBelow", _plan.EXACT_BELOW),
    ("cuda/plan.h", "kDependent", _plan._DEPENDENT),
    ("cuda/plan.h", "kDependent", _qp._DEPENDENT),
    ("cuda/plan.h", "kAlignment", _plan._ALIGNMENT),
    ("cpu/levels.cpp", "kBucket", levels.BUCKET),
    ("cpu/operators.cpp", "kExactBelow", _plan.EXACT_BELOW),
    ("cpu/solve.cpp", "kDependent", _qp._DEPENDENT),
    ("cpu/solve.cpp", "kOptimal", _qp._OPTIMAL),
    ("cpu/solve.cpp", "kOptimalPerWeight", _qp._OPTIMAL_PER_WEIGHT),
    ("cpu/combine.cpp", "kFloatMin", _reference._FLOAT32_SAFE[0]),
    ("cpu/combine.cpp", "kFloatMax", _reference._FLOAT32_SAFE[1]),
]
STATUSES = (_qp.Status.NON_FINITE, _qp.Status.EXACT, _qp.Status.ITERATION_CAP)
STEPS = (_qp._STEPS_PER_ROW, _qp._STEPS_MORE)
IN_CODE = [
    ("kernels/problem.cuh", r"enum Phases { kSolve = (\d), kCombine = (\d) }", (_plan.SOLVE, _plan.COMBINE)),
    ("kernels/combine.cuh", r"value > (0x\S+) && value < (0x[\w-]+)", _reference._FLOAT32_SAFE),
    ("kernels/combine.cuh", r"shared_memory\(\) \+ (\d+)", (_plan._FLAG_BYTES,)),
    ("kernels/reduce.cuh", r"shared_memory\(\) \+ (\d+)", (_plan._FLAG_BYTES,)),
    ("kernels/solve.cuh", r"step < (\d+) \* solver\.rows \+ (\d+)", STEPS),
    ("cpu/solve.cpp", r"step < (\d+) \* rows_ \+ (\d+)", STEPS),
    ("kernels/solve.cuh", r"!finite \? (\d) : converged \? (\d) : (\d)", STATUSES),
    ("cpu/solve.cpp", r"excluded \? (\d) : converged \? (\d) : (\d)", STATUSES),
    ("cuda/plan.h", r"divide\(bytes, (\d+)\) \* (\d+)", (_plan._ARRAY_ALIGNMENT,) * 2),
    ("cuda/plan.h", r"shared <= (\d+) \* 1024", (_plan.SHARED_WITHOUT_ASKING / 1024,)),
    ("cuda/launch.cu", r"shared_bytes > (\d+) \* 1024", (_plan.SHARED_WITHOUT_ASKING / 1024,)),
]
# How the work is cut and summed inside, and what follows from the others: nothing in Python has to know.
OWN = {"kBlock", "kChunk", "kIsFloat", "kLost", "kMaxSlots", "kMmaTiles", "kMmaWarps", "kRowsRun", "kRun", "kSlot"}
OWN |= {"kSweep", "kTileRun", "kWarp"}


def number(text: str) -> float:
    text = text.replace("'", "")
    return float.fromhex(text) if text.startswith("0x") else float(text)


def constants(file: str) -> dict[str, str]:
    """Those of namespace scope in a file of csrc, as they are written there, by name."""
    lines = re.findall(r"^constexpr \w+ (k.*?);", (CSRC / file).read_text(), flags=re.MULTILINE)
    pairs = (pair.partition(" = ") for line in lines for pair in line.split(", "))
    return {name.partition("<")[0]: value for name, _, value in pairs}


@pytest.mark.parametrize(("file", "name", "value"), NAMED)
def test_a_constant_has_the_value_that_python_has(file: str, name: str, value: float) -> None:
    assert number(constants(file)[name]) == value


@pytest.mark.parametrize(("file", "pattern", "values"), IN_CODE)
def test_a_number_in_the_code_is_the_one_that_python_has(file: str, pattern: str, values: tuple[float, ...]) -> None:
    found = re.findall(pattern, (CSRC / file).read_text())
    assert found, f"csrc/{file} no longer has {pattern}: say here where that number is now"
    for numbers in found:
        assert [number(text) for text in ([numbers] if isinstance(numbers, str) else numbers)] == list(values)


@pytest.mark.parametrize("file", FILES)
def test_every_constant_is_compared(file: str) -> None:
    compared = {name for place, name, _ in NAMED if place == file}
    new = set(constants(file)) - compared - OWN
    assert not new, f"csrc/{file}: add {', '.join(sorted(new))} to NAMED in {__file__}, or to OWN if Python has none"


def threads_of_kernels() -> dict[str, int]:
    """Threads by kernel, of any type, as they are compiled."""
    text = (CSRC / "kernels/kernels.cuh").read_text()
    found = re.findall(r"KERNEL\((\w+?)(?:_##suffix)?, (\d+), ", text)
    (prepare,) = re.findall(r"__launch_bounds__\((\d+)\) prepare\(", text)
    return {name: int(threads) for name, threads in [*found, ("prepare", prepare)]}


def threads_of_launches() -> dict[str, int]:
    """Threads by kernel, of any type, as they are launched."""
    found, devices = {}, (Device((7, 5), 4), Device((9, 0), 4))
    for dtype, cross, device in product(_plan.ITEM_BYTES, range(1, ops.MOST_ROWS + 1), devices):
        plan = Plan(dtype, cross, (0, 4096), device, Addresses([0] * cross, 0, 0), ridge=_plan.EXACT_BELOW)
        for launch in (*plan.project(), *plan.products(), *plan.solve(), *plan.combine()):
            found[launch.kernel.removesuffix(f"_{dtype}")] = launch.block
    return found


def test_every_kernel_is_launched_with_the_threads_that_it_is_compiled_for() -> None:
    assert threads_of_launches() == threads_of_kernels()


def test_types_have_the_numbers_of_their_kernels() -> None:
    found = re.findall(r"CGA_KERNELS_(\d)\(KERNEL\) \w+\(KERNEL, (\w+), ", (CSRC / "kernels/kernels.cuh").read_text())
    assert {name: int(unit) for unit, name in found} == _nvrtc.UNITS
    assert set(_nvrtc.TYPES.values()) == set(_nvrtc.UNITS) == set(_plan.ITEM_BYTES)


def test_the_kernels_have_room_for_all_rows_in_whole_tiles() -> None:
    assert ceil((ops.MOST_ROWS + 1) / _plan._TILE) * _plan._TILE == _plan.ROW_ADDRESSES


def test_parameters_start_where_a_vector_can_be_loaded() -> None:
    assert layout.ALIGNMENT % _plan._ALIGNMENT == 0


def test_default_ridges_leave_products_in_float32() -> None:
    shorter = [eps for dtype, eps in _checks.DEFAULT_EPS.items() if dtype != torch.float64]
    assert min(shorter) >= _plan.EXACT_BELOW
