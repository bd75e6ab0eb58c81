"""Argument checks of the public operators: a message names operator, argument, rule and what was found."""

import math
from collections.abc import Sequence
from itertools import pairwise
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from cga_lightning.copy_on_write import address

MOST_ROWS = 64  # so many cross-gradients at most; the kernels have room for no more
# Ridge relative to the squared norm of a row: above the rounding of the gradients, below what matters to
# training. float64 needs it only where cross-gradients are dependent to 1e-12, and there the exact solution
# jumps with the last bit of the data.
DEFAULT_EPS = {torch.float32: 1e-6, torch.float16: 1e-4, torch.bfloat16: 1e-4, torch.float64: 1e-12}


class Arguments(NamedTuple):
    """Checked arguments of a projection, with the defaults filled in."""

    rows: list[Tensor]  # K tensors [d]
    offsets: Tensor  # int64 [s + 1] on the CPU
    margin: float
    ridge: float


def arguments(
    operator: str,
    cross: Tensor | Sequence[Tensor],
    own: Tensor,
    margin: float,
    offsets: Tensor | None,
    eps: float | None,
) -> Arguments:
    """Check all arguments of `project` or `project_`."""
    listed = rows(operator, cross, own)
    margin, ridge = scalars(operator, margin, eps, own.dtype)
    return Arguments(listed, bounds(operator, offsets, own.numel()), margin, ridge)


def rows(operator: str, cross: Tensor | Sequence[Tensor], own: Tensor, name: str = "cross") -> list[Tensor]:
    """Return the K cross-gradients as a list of [d] tensors that agree with `own` [d]."""
    _check_own(own, operator)
    listed = _listed(cross, operator)
    if not 1 <= len(listed) <= MOST_ROWS:
        raise ValueError(f"{operator}: {name} must have 1 to {MOST_ROWS} rows, found {len(listed)}.")
    for index, row in enumerate(listed):
        _check_row(row, own, f"{name}[{index}]", operator)
    return listed


def scalars(operator: str, margin: float, eps: float | None, dtype: torch.dtype) -> tuple[float, float]:
    """Return the margin and the ridge as floats, with the ridge's default for the dtype."""
    ridge = DEFAULT_EPS[dtype] if eps is None else eps
    return _non_negative(margin, "margin", operator), _non_negative(ridge, "eps", operator)


def bounds(operator: str, given: Tensor | None, length: int) -> Tensor:
    """Return the segment bounds as int64 [s + 1] on the CPU; one segment if none are given."""
    if given is None:
        return torch.tensor([0, length], dtype=torch.int64, device="cpu")
    if not isinstance(given, Tensor) or given.dtype != torch.int64:
        found = given.dtype if isinstance(given, Tensor) else type(given).__name__
        raise TypeError(f"{operator}: offsets must be an int64 tensor, found {found}.")
    if given.device.type != "cpu":
        raise ValueError(
            f"{operator}: offsets must be on the CPU, found {given.device}: "
            "reading its values would wait for the device."
        )
    if given.dim() != 1 or given.numel() < 2:
        raise ValueError(f"{operator}: offsets must have shape [s + 1] with s >= 1, found {list(given.shape)}.")
    if has_values(given):
        _check_bounds(given.tolist(), length, operator)
    return given.contiguous()


def disjoint(operator: str, listed: list[Tensor], own: Tensor) -> None:
    """Check that no row shares memory with `own`, which is about to be overwritten."""
    start, stop = _extent(own)
    for index, row in enumerate(listed):
        first, last = _extent(row)
        if first < stop and start < last:
            raise ValueError(f"{operator}: rows[{index}] must not share memory with own.")


def products(operator: str, given: Tensor) -> None:
    """Check inner products [s, K + 1, K + 1]."""
    if given.dtype != torch.float64:
        raise TypeError(f"{operator}: products must be float64, found {given.dtype}.")
    if given.dim() != 3 or given.shape[1] != given.shape[2] or not 2 <= given.shape[1] <= MOST_ROWS + 1:
        raise ValueError(
            f"{operator}: products must have shape [s, K + 1, K + 1] with 1 <= K <= {MOST_ROWS}, "
            f"found {list(given.shape)}."
        )
    _check_contiguous(given, "products", operator)


def dual(operator: str, given: Tensor, own: Tensor, segments: int, count: int) -> None:
    """Check weights [s, K] for the segments of `own`."""
    if given.dtype != torch.float64:
        raise TypeError(f"{operator}: dual must be float64, found {given.dtype}.")
    if list(given.shape) != [segments, count]:
        raise ValueError(f"{operator}: dual must have shape [s, K] = {[segments, count]}, found {list(given.shape)}.")
    _check_device(given, own, "dual", operator)
    _check_contiguous(given, "dual", operator)


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor on the CPU holds data now, and is not a stand-in of a compiler."""
    return not (torch.compiler.is_compiling() or isinstance(tensor, FakeTensor))


def _extent(tensor: Tensor) -> tuple[int, int]:
    start = address(tensor)
    return start, start + tensor.numel() * tensor.element_size()


def _check_bounds(found: list[int], length: int, operator: str) -> None:
    if found[0] != 0:
        raise ValueError(f"{operator}: offsets must start at 0, found {found[0]}.")
    if found[-1] != length:
        raise ValueError(f"{operator}: offsets must end at d = {length}, found {found[-1]}.")
    for index, (low, high) in enumerate(pairwise(found)):
        if high < low:
            raise ValueError(
                f"{operator}: offsets must not decrease, found offsets[{index}] = {low}, offsets[{index + 1}] = {high}."
            )


def _listed(cross: Tensor | Sequence[Tensor], operator: str) -> list[Tensor]:
    if isinstance(cross, Tensor):
        if cross.dim() != 2:
            raise ValueError(
                f"{operator}: cross must have shape [K, d] or be a sequence of K tensors [d], "
                f"found a tensor of shape {list(cross.shape)}."
            )
        return list(cross.detach().unbind())
    if not isinstance(cross, Sequence):
        raise TypeError(f"{operator}: cross must be a tensor or a sequence of tensors, found {type(cross).__name__}.")
    return [row.detach() if isinstance(row, Tensor) else row for row in cross]


def _check_own(own: Tensor, operator: str) -> None:
    _check_tensor(own, "own", operator)
    if own.dtype not in DEFAULT_EPS:
        raise TypeError(f"{operator}: own must be float32, float16, bfloat16 or float64, found {own.dtype}.")
    if own.dim() != 1 or own.numel() == 0:
        raise ValueError(f"{operator}: own must have shape [d] with d >= 1, found {list(own.shape)}.")
    _check_contiguous(own, "own", operator)


def _check_row(row: Tensor, own: Tensor, name: str, operator: str) -> None:
    _check_tensor(row, name, operator)
    if row.dtype != own.dtype:
        raise TypeError(f"{operator}: {name} must have the dtype of own, {own.dtype}, found {row.dtype}.")
    if row.shape != own.shape:
        raise ValueError(f"{operator}: {name} must have the shape of own, {list(own.shape)}, found {list(row.shape)}.")
    _check_device(row, own, name, operator)
    _check_contiguous(row, name, operator)


def _check_tensor(value: object, name: str, operator: str) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{operator}: {name} must be a tensor, found {type(value).__name__}.")
    if value.layout != torch.strided:
        raise TypeError(f"{operator}: {name} must be a dense tensor, found layout {value.layout}.")


def _check_device(tensor: Tensor, own: Tensor, name: str, operator: str) -> None:
    if tensor.device != own.device:
        raise ValueError(f"{operator}: {name} must be on the device of own, {own.device}, found {tensor.device}.")


def _check_contiguous(tensor: Tensor, name: str, operator: str) -> None:
    if not tensor.is_contiguous():
        raise ValueError(
            f"{operator}: {name} must be contiguous, found stride {list(tensor.stride())}; call .contiguous()."
        )


def _non_negative(value: object, name: str, operator: str) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{operator}: {name} must be a number, found {type(value).__name__}.")
    number = float(value)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{operator}: {name} must be finite and at least 0, found {number:g}.")
    return number
