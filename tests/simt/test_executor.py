"""The executor itself: it must notice every rule of CUDA that a kernel breaks."""

import ctypes

import numpy as np
import pytest
from executor import SCHEDULES, Executor, Schedule, build, has_compiler

from cga_lightning.ops import _plan

FAULTS = {
    "divergent_barrier": "divergent barrier",
    "early_exit": "a thread left while others wait|after a thread has left",
    "exit_before_barrier": "a thread left while others wait|after a thread has left",
    "lane_outside_mask": "not in its own mask",
    "missing_lane": "missing lane",
    "divergent_shuffle": "divergent collective",
    "shuffle_from_outside": "outside the mask",
    "waits_for_ever": "deadlock",
    "half_a_warp_waits": "deadlock",
    "no_such_kernel": "no kernel",
}


@pytest.fixture(scope="module")
def faults() -> Executor:
    if not has_compiler():
        pytest.skip("g++ is not installed")
    return Executor(build(source="faults.cpp"))


class _Numbers(ctypes.Structure):
    _fields_ = [("value", ctypes.c_int * 64)]


def _launch(kernel: str, block: int = 64) -> _plan.Launch:
    return _plan.Launch(kernel, 2, block, 4 * 64, (_Numbers(),))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.order)
@pytest.mark.parametrize("kernel", FAULTS)
def test_notices(faults: Executor, kernel: str, schedule: Schedule) -> None:
    with pytest.raises(RuntimeError, match=FAULTS[kernel]):
        faults.launch(_launch(kernel, 48 if kernel == "missing_lane" else 64), schedule)


def test_shared_memory_starts_as_nonsense(faults: Executor) -> None:
    launch = _launch("reads_unset_shared_memory")
    faults.launch(launch, SCHEDULES[0])
    assert launch.arguments[0].value[0] == -1


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.order)
def test_partial_masks(faults: Executor, schedule: Schedule) -> None:
    launch = _launch("sums_by_halves")
    faults.launch(launch, schedule)
    halves = np.arange(64).reshape(4, 16).sum(1)
    assert np.array_equal(launch.arguments[0].value, np.roll(np.repeat(halves, 16), -16))


def test_the_plan_and_the_kernels_agree_on_their_argument(executor: Executor) -> None:
    assert executor.size(table=False) == ctypes.sizeof(_plan.Problem)
    assert executor.size(table=True) == ctypes.sizeof(_plan.Table)
