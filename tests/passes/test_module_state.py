"""The mean of the agents' tensors is exact where they agree."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from cga_lightning.passes.module_state import mean_state

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
DTYPES = [*FLOATS, torch.complex64, torch.bool, torch.uint8, torch.int64]


def bits(tensor: Tensor) -> list[int]:
    return tensor.reshape(-1).view(torch.uint8).tolist()


@given(st.sampled_from(DTYPES), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_the_mean_of_equal_tensors_is_that_tensor_to_the_bit(dtype: torch.dtype, agents: int, seed: int) -> None:
    raw = torch.randint(256, (24 * dtype.itemsize,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    tensor = raw.remainder(2).bool() if dtype is torch.bool else raw.view(dtype)
    tensor = torch.where(tensor == tensor, tensor, 0.0 if tensor.is_floating_point() else 0).to(dtype)  # NaN have many
    (mean,) = mean_state([[tensor.clone()] for _ in range(agents)])
    assert bits(mean) == bits(tensor) and mean.dtype == dtype and mean is not tensor


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("agents", [2, 3, 7])
def test_what_is_extreme_stays_as_it_is(dtype: torch.dtype, agents: int) -> None:
    info = torch.finfo(dtype)
    tensor = torch.tensor([info.min, info.max, info.tiny, -0.0, 0.0, float("inf"), -float("inf")], dtype=dtype)
    (mean,) = mean_state([[tensor] for _ in range(agents)])
    assert bits(mean) == bits(tensor)
    (mean,) = mean_state([[torch.full((), float("nan"), dtype=dtype)] for _ in range(agents)])
    assert mean.isnan()


@given(st.integers(1, 9), st.integers(0, 2**32 - 1), st.sampled_from(FLOATS))
def test_the_mean_of_others_is_that_of_float64(agents: int, seed: int, dtype: torch.dtype) -> None:
    """Also where some entries agree, and where one is far larger than the others."""
    generator = torch.Generator().manual_seed(seed)
    scales = 10.0 ** torch.randint(-3, 4, (32,), generator=generator)
    values = (torch.randn(agents, 32, generator=generator, dtype=torch.float64) * scales).to(dtype)
    values[:, :8] = values[0, :8].clone()
    (mean,) = mean_state([[row] for row in values])
    largest = values.double().abs().amax(0)
    assert bits(mean[:8]) == bits(values[0, :8])
    assert ((mean.double() - values.double().mean(0)).abs() <= 4 * torch.finfo(dtype).eps * largest).all()


def test_infinity_on_some_agents() -> None:
    inf = float("inf")
    first, second = torch.tensor([inf, 1.0, inf]), torch.tensor([1.0, -inf, -inf])
    (mean,) = mean_state([[first], [second]])
    assert mean[:2].tolist() == [inf, -inf] and mean[2].isnan()
