"""The cases of the CPU executor, on a real device. Everything here is skipped without one."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cga_lightning.ops import _library, _nvrtc

sys.path.insert(0, str(Path(__file__).parents[1] / "simt"))

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(params=["cuda", "cupy"])
def operators(request: pytest.FixtureRequest) -> Iterator[object]:
    """The functions gram, solve, combine_ and project_ of each path to the kernels."""
    if request.param == "cupy":
        if reason := _nvrtc.missing():
            pytest.skip(reason)
        yield _nvrtc
        return
    if _library.backend("cuda") != "cuda":
        pytest.skip(f"the extension for CUDA: {_library.missing().get('cuda')}")
    yield torch.ops.cga_lightning
