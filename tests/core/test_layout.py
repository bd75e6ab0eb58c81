from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cga_lightning.core.layout import ALIGNMENT, FlatLayout

SHAPES = [(3, 5), (), (7,), (2, 1, 4), (64,), (0,)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_write_then_read_returns_the_parameters(dtype: torch.dtype) -> None:
    parameters = [torch.randn(shape).to(dtype) for shape in SHAPES]
    layout = FlatLayout(parameters)
    flat = layout.write(parameters, out=layout.zeros())
    read = [torch.empty_like(p) for p in parameters]
    layout.read(flat, read)
    assert all(torch.equal(a, b) for a, b in zip(read, parameters, strict=True))
    assert flat.double().sum() == pytest.approx(sum(p.double().sum().item() for p in parameters))


def test_every_parameter_is_aligned_and_padded_with_zeros() -> None:
    parameters = [torch.ones(shape) for shape in SHAPES]
    layout = FlatLayout(parameters)
    flat = layout.write(parameters, out=layout.zeros())
    assert all(offset * 4 % ALIGNMENT == 0 for offset in layout.offsets.tolist())
    assert layout.offsets[-1] == layout.numel == flat.numel()
    assert flat.sum() == sum(p.numel() for p in parameters)


def test_views_share_memory_and_missing_gradients_count_as_zero() -> None:
    layout = FlatLayout([torch.zeros(3), torch.zeros(2)])
    flat = layout.write([torch.ones(3), None], out=layout.zeros().fill_(9))
    assert layout.views(flat)[0].data_ptr() == flat.data_ptr()
    assert [view.tolist() for view in layout.views(flat)] == [[1, 1, 1], [0, 0]]


def test_memory_formats_other_than_contiguous_are_copied_by_value() -> None:
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    layout = FlatLayout([weight])
    assert torch.equal(layout.views(layout.write([weight], out=layout.zeros()))[0], weight)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@given(st.lists(st.integers(0, 4), max_size=6), st.integers(1, 3))
def test_sparse_tensors_become_dense(rows: list[int], width: int) -> None:
    """Also where they hold a row several times, or none."""
    gradient = torch.sparse_coo_tensor(
        torch.tensor([rows], dtype=torch.int64), torch.ones(len(rows), width), (5, width)
    )
    layout = FlatLayout([torch.zeros(2), torch.zeros(5, width)])
    flat = layout.write([torch.ones(2), gradient], out=layout.zeros().fill_(9))
    expected = torch.bincount(torch.tensor(rows, dtype=torch.int64), minlength=5).float()
    assert torch.equal(layout.views(flat)[1], expected[:, None].expand(5, width))


def test_bad_parameters_are_refused() -> None:
    base = nn.Parameter(torch.zeros(8))
    for parameters, message in [
        ([], "at least one trainable parameter"),
        ([torch.zeros(2), torch.zeros(2, dtype=torch.float64)], "one dtype, found torch.float32, torch.float64"),
        ([torch.zeros(2), torch.zeros(2, device="meta")], "one device, found cpu, meta"),
        ([torch.zeros(2, dtype=torch.int64)], "floating point, found torch.int64"),
        ([base[:5], base[3:]], "share memory"),
    ]:
        with pytest.raises(ValueError, match=message):
            FlatLayout(parameters)
