"""The projection in plain torch, on any device and dtype: the specification of every compiled backend.

Three parts: `gram` reads every element once, `_qp.solve` works on K x K numbers, `combine_`
reads only the rows with a weight. On CUDA nothing here waits for the device.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from cga_lightning.ops._qp import solve

# Products and sums are formed in float64: a float32 sum loses accuracy with its length, and a float32 product
# beyond 1e19 squared or below 1e-19 squared is lost. A block of slices stays in the cache between the copy
# and the product.
_SLICE = 4096
_BLOCK = 16 * _SLICE
# Weights outside this range are combined in float64.
_FLOAT32_SAFE = (2.0**-96, 2.0**96)


def project_(rows: list[Tensor], own: Tensor, offsets: Tensor, margin: float, eps: float) -> tuple[Tensor, Tensor]:
    """Overwrite `own` [d] with its projection; return v [s, K] float64 and the status [s] int32."""
    with torch.no_grad(), torch.autocast(own.device.type, enabled=False):
        dual, status = solve(gram(rows, own, offsets), margin, eps)
        combine_(rows, own, offsets, dual)
    return dual, status


def gram(rows: list[Tensor], own: Tensor, offsets: Tensor) -> Tensor:
    """Return the inner products of the K cross-gradients and the own gradient in each segment.

    Args:
        rows: K tensors [d].
        own: [d], the last row and column of the result.
        offsets: segment bounds, int64 [s + 1] on the CPU.

    Returns:
        [s, K + 1, K + 1] float64, every entry accurate to about 1e-15 of the two row norms at any d.

    """
    every = [*rows, own]
    bounds = offsets.tolist()
    total = own.new_zeros((len(bounds) - 1, len(every), len(every)), dtype=torch.float64)
    block = own.new_empty((len(every), min(len(own), _BLOCK)), dtype=torch.float64)
    for products, (start, stop) in zip(total, pairwise(bounds), strict=True):
        for low, slices, width in _pieces(start, stop):
            products += _slice_products(every, low, block[:, : slices * width].view(-1, slices, width))
    return total


def combine_(rows: list[Tensor], own: Tensor, offsets: Tensor, dual: Tensor) -> None:
    """Add the weighted rows to `own` [d]; a row of weight 0 is not read (on CUDA: read, and not used)."""
    add = _add_on_cpu if own.is_cpu else _add_masked
    for segment, (start, stop) in enumerate(pairwise(offsets.tolist())):
        add([row[start:stop] for row in rows], own[start:stop], dual[segment])


def _slice_products(rows: list[Tensor], start: int, block: Tensor) -> Tensor:
    """Return the inner products over the slices of `block` [K + 1, slices, width], filled from `start`."""
    for target, row in zip(block.flatten(1), rows, strict=True):
        target.copy_(row[start : start + len(target)])
    sliced = block.transpose(0, 1)
    return torch.bmm(sliced, sliced.mT).sum(0)


def _pieces(start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Cut [start, stop) into blocks of equal slices and a rest: first element, slices, width of a slice."""
    while start < stop:
        slices = min(stop - start, _BLOCK) // _SLICE
        slices, width = (slices, _SLICE) if slices else (1, stop - start)
        yield start, slices, width
        start += slices * width


def _add_on_cpu(rows: list[Tensor], own: Tensor, weights: Tensor) -> None:
    active = [(row, weight) for row, weight in zip(rows, weights.tolist(), strict=True) if weight]
    if not active:
        return
    low, high = _FLOAT32_SAFE
    fits = all(low < weight < high for _, weight in active)
    wide = torch.float32 if fits and own.dtype != torch.float64 else torch.float64
    for start in range(0, own.numel(), _BLOCK):
        part = slice(start, start + _BLOCK)
        total = own[part].to(wide)  # own itself where it has this dtype
        for row, weight in active:
            total.add_(row[part], alpha=weight)
        if total.dtype != own.dtype:
            own[part].copy_(total)


def _add_masked(rows: list[Tensor], own: Tensor, weights: Tensor) -> None:
    for start in range(0, own.numel(), _BLOCK * 16):
        part = slice(start, start + _BLOCK * 16)
        total = own[part].double()
        for row, weight in zip(rows, weights, strict=True):
            total += torch.where(weight == 0, 0.0, row[part].double() * weight)
        own[part].copy_(total)
