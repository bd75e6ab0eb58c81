"""Every kernel compiles for every architecture, within its budget, to the instructions it should have."""

import json
from pathlib import Path

import pytest
from compiler import compile_unit, machine_code, usage

from cga_lightning.ops import _nvrtc

# The architecture of the budget. Compile times: 8 s for a type, so the others are for `make kernels`.
NATIVE = "sm_90"
BUDGET = Path(__file__).with_name("budget.json")
UNITS = (0, *_nvrtc.UNITS.values())
OTHERS = ("sm_75", "sm_80", "sm_100", "sm_120")
# Another release of the assembler may need a few more.
SLACK_REGISTERS, SLACK_BYTES = 8, 64


@pytest.mark.parametrize("unit", UNITS)
def test_stays_within_the_budget(unit: int) -> None:
    budget = json.loads(BUDGET.read_text())
    found = usage(compile_unit(unit, NATIVE).log)
    assert found
    for name, used in found.items():
        registers, spill_bytes = budget[name]
        assert used.registers <= registers + SLACK_REGISTERS, name
        assert used.spill_bytes <= spill_bytes + SLACK_BYTES, name


@pytest.mark.slow
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("architecture", OTHERS)
def test_compiles(unit: int, architecture: str) -> None:
    assert compile_unit(unit, architecture).cubin


@pytest.mark.parametrize("unit", [_nvrtc.UNITS["f32"], _nvrtc.UNITS["bf16"]])
def test_machine_code(unit: int, tmp_path: Path) -> None:
    kernels = machine_code(compile_unit(unit, NATIVE).cubin, tmp_path)
    for name, code in kernels.items():
        if "mma" in name or "rows" in name:
            _assert_gram(name, code)
        if name.startswith("combine"):
            assert sum(line.startswith("LDG.E.EF.128") for line in code) >= 2
            assert any(line.startswith("STG.E.EF.128") for line in code)
        if name.startswith("gram"):
            _assert_hand_over(code)


def _assert_gram(name: str, code: list[str]) -> None:
    blocks = int(name.split("_")[1].lstrip("rowsma"))
    starts = [index for index, line in enumerate(code) if line.startswith("LDG.E.128")]
    assert len(starts) >= blocks, "16 bytes of every row in one load"
    # Of the products, before anything is written back: mma steps, or multiply-adds up to the first shuffle.
    product, end = ("HMMA", len(code)) if "mma" in name else ("FFMA", _first(code, "SHFL"))
    products = [index for index, line in enumerate(code[:end]) if line.startswith(product)]
    assert len(products) >= blocks
    loop = code[products[0] : products[-1] + 1]
    assert not [line for line in loop if line.startswith("LDL")], "local memory in the main loop"


def _assert_hand_over(code: list[str]) -> None:
    """Assert the fences that hand the partial sums to the last block: around two counters."""
    arrivals = [index for index, line in enumerate(code) if line.startswith("ATOM")]
    fences = [index for index, line in enumerate(code) if line.startswith("MEMBAR")]
    assert len(arrivals) == 2
    for arrival, following in zip(arrivals, [*arrivals[1:], len(code)], strict=True):
        assert any(fence < arrival for fence in fences)
        assert any(arrival < fence < following for fence in fences)


def _first(code: list[str], start: str) -> int:
    return next(index for index, line in enumerate(code) if line.startswith(start))
