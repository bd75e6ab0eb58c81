"""The compiled extension as far as it can be seen without a device: it loads, and torch knows its kernels."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cga_lightning.ops import _library, project

pytestmark = pytest.mark.skipif(
    _library.backend("cuda") != "cuda", reason=f"no extension for CUDA: {_library.missing().get('cuda')}"
)


@pytest.mark.parametrize("name", ["gram", "solve", "combine_", "project_"])
def test_the_kernels_are_registered(name: str) -> None:
    table = torch._C._dispatch_dump(f"cga_lightning::{name}")
    assert any(line.startswith("CUDA:") and "operators.cu" in line for line in table.splitlines())


def test_fake_tensors_pass() -> None:
    with FakeTensorMode():
        result = project(torch.empty(3, 100, device="cuda"), torch.empty(100, device="cuda"))
    assert result.gradient.device.type == result.dual.device.type == "cuda"
