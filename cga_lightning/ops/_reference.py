"""The projection in plain torch, on any device and dtype: the specification of every compiled backend.

Three parts: :func:`gram` reads every element once, ``_qp.solve`` works on K x K numbers, :func:`combine_`
reads only the rows with a weight. On CUDA nothing here waits for the device.
"""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from cga_lightning.ops._qp import solve

# A float32 sum loses accuracy with its length, so products are summed in float32 over one slice only, and the
# sums of the slices in float64. A block of slices stays in the cache between the copy and the product.
_SLICE = 4096
_BLOCK = 64 * _SLICE
# Below this ridge the rounding of a float32 product would decide which cross-gradients are dependent.
_EXACT_BELOW = 1e-6
# A float32 product under 1.2e-38 is lost; so many of them must not matter to a sum of squares.
_LOST = 2.0**-103
# Weights outside this range are combined in float64.
_FLOAT32_SAFE = (2.0**-96, 2.0**96)


def project_(rows: list[Tensor], own: Tensor, offsets: Tensor, margin: float, eps: float) -> tuple[Tensor, Tensor]:
    """Overwrite ``own`` [d] with its projection; return v [s, K] float64 and the status [s] int32."""
    with torch.no_grad(), torch.autocast(own.device.type, enabled=False):
        dual, status = solve(gram(rows, own, offsets, exact=eps < _EXACT_BELOW), margin, eps)
        combine_(rows, own, offsets, dual)
    return dual, status


def gram(rows: list[Tensor], own: Tensor, offsets: Tensor, *, exact: bool = False) -> Tensor:
    """Return the inner products of the K cross-gradients and the own gradient in each segment.

    Args:
        rows: K tensors [d].
        own: [d], the last row and column of the result.
        offsets: segment bounds, int64 [s + 1] on the CPU.
        exact: form the products in float64. Otherwise every entry of float32 or half rows is accurate to
        about
            1e-7 of the two row norms, at any d.

    Returns:
        [s, K + 1, K + 1] float64.

    """
    every = [*rows, own]
    bounds = list(pairwise(offsets.tolist()))
    if exact or own.dtype == torch.float64 or not own.is_cpu:
        return _sum_products(every, bounds, torch.float64)
    products = _sum_products(every, bounds, torch.float32)
    for segment in _unsafe(products, offsets):
        products[segment] = _sum_products(every, bounds[segment : segment + 1], torch.float64)[0]
    return products


def combine_(rows: list[Tensor], own: Tensor, offsets: Tensor, dual: Tensor) -> None:
    """Add the weighted rows to ``own`` [d]; a row of weight 0 is not read (on CUDA: read, and not used)."""
    add = _add_on_cpu if own.is_cpu else _add_masked
    for segment, (start, stop) in enumerate(pairwise(offsets.tolist())):
        add([row[start:stop] for row in rows], own[start:stop], dual[segment])


def _unsafe(products: Tensor, offsets: Tensor) -> list[int]:
    """Return the segments in which a square of a float32 element overflowed, or one that matters was lost."""
    squares = products.diagonal(dim1=1, dim2=2)
    safe = squares.isfinite() & (squares >= offsets.diff()[:, None] * _LOST)
    return [segment for segment, good in enumerate(safe.all(1).tolist()) if not good]


def _sum_products(rows: list[Tensor], bounds: list[tuple[int, int]], dtype: torch.dtype) -> Tensor:
    total = rows[0].new_zeros((len(bounds), len(rows), len(rows)), dtype=torch.float64)
    longest = max(stop - start for start, stop in bounds)
    block = rows[0].new_empty((len(rows), min(longest, _BLOCK)), dtype=dtype)
    for products, (start, stop) in zip(total, bounds, strict=True):
        for low, slices, width in _pieces(start, stop):
            piece = block[:, : slices * width]
            for target, row in zip(piece, rows, strict=True):
                target.copy_(row[low : low + slices * width])
            sliced = piece.view(-1, slices, width).transpose(0, 1)
            products += torch.bmm(sliced, sliced.mT).sum(0, dtype=torch.float64)
    return total


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
