"""Copies of tensors that share their memory with the original until somebody writes into one of the two."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

address: Callable[[Tensor], int] = torch._C._data_address  # type: ignore[attr-defined]
"""Where the elements of a tensor lie; to ask for `data_ptr()`, through which one could write, makes the copy."""


def lazily_copied(tensor: Tensor) -> Tensor:
    """A copy, made by torch when it must be: at once where the memory is not torch's own, such as an array of numpy."""
    try:
        return torch._lazy_clone(tensor)
    except RuntimeError:  # no storage, or one that cannot be shared so
        return tensor.clone()


def shares_memory(tensor: Tensor, copy: Tensor) -> bool:
    """Whether neither a tensor nor its lazy copy was written since the copy was asked for."""
    return address(tensor) == address(copy)
