"""No compression."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cga_lightning.compression.base import Compressor, Layout
from cga_lightning.compression.bits import split


@dataclass(frozen=True)
class Identity(Compressor):
    """No compression, or only a shorter float on the wire.

    Args:
        wire_dtype: floating dtype on the wire or its name, e.g. "bfloat16"; None keeps that of the layout.

    Raises:
        ValueError: not a floating dtype.
    """

    wire_dtype: str | torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.wire_dtype is not None:
            name = str(self.wire_dtype).removeprefix("torch.")
            if getattr(getattr(torch, name, None), "is_floating_point", False) is not True:
                raise ValueError(f"wire_dtype must be a floating dtype of torch, got {self.wire_dtype!r}.")
            object.__setattr__(self, "wire_dtype", name)

    def wire_size(self, layout: Layout) -> int:
        """Bytes of every message: d elements of the dtype on the wire."""
        return layout.numel * self._dtype(layout).itemsize

    def compress(self, x: Tensor, layout: Layout) -> Tensor:
        """Return the bytes of x."""
        return x.to(self._dtype(layout), copy=True).view(torch.uint8)

    def decompress(self, wire: Tensor, layout: Layout) -> Tensor:
        """Return x, rounded to wire_dtype."""
        self._check(wire, layout)
        return split(wire, (layout.numel, self._dtype(layout)))[0].to(layout.dtype)

    def _dtype(self, layout: Layout) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, str(self.wire_dtype)) if self.wire_dtype else layout.dtype
        return dtype
