"""One bit per element."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cga_lightning.compression.base import Compressor, Layout
from cga_lightning.compression.bits import join, pack, packed_size, split, unpack


@dataclass(frozen=True)
class ScaledSign(Compressor):
    """One bit per element and one scale per parameter: ``(||p||_1 / n) sign(p)`` (Karimireddy et al. 2019).

    This is the compressor of CompCGA. Zero has the sign of its bit, as a comparison would take twice
    the time. The scale is float32.

    Args:
        per_layer: one scale per parameter; False takes one for the whole vector.
    """

    per_layer: bool = True
    needs_feedback = True

    def wire_size(self, layout: Layout) -> int:
        """d bits and the scales."""
        return 4 * self._scales(layout) + packed_size(layout.numel, 1)

    def compress(self, x: Tensor, layout: Layout) -> Tensor:
        """Return the scales, then the signs."""
        wide = torch.promote_types(x.dtype, torch.float32)
        parts = layout.views(x) if self.per_layer else [x]
        norms = torch.stack([part.abs().sum(dtype=wide) for part in parts])
        return join((norms / self._counts(layout, norms)).float(), pack(x.signbit().view(torch.uint8), 1))

    def decompress(self, wire: Tensor, layout: Layout) -> Tensor:
        """Return each sign times its scale."""
        signs, scales = self._read(wire, layout)
        parts = layout.views(signs)
        for part, scale in zip(parts, scales, strict=True):
            part.mul_(scale)
        return _clear_between(parts, signs)

    def subtract_(self, x: Tensor, wire: Tensor, layout: Layout) -> None:
        """Multiply and subtract at once."""
        signs, scales = self._read(wire, layout)
        for part, sign, scale in zip(layout.views(x), layout.views(signs), scales, strict=True):
            part.addcmul_(sign, scale, value=-1)

    def _read(self, wire: Tensor, layout: Layout) -> tuple[Tensor, Sequence[Tensor]]:
        """The signs ``[d]`` and one scale per parameter."""
        self._check(wire, layout)
        bits = packed_size(layout.numel, 1)
        scales, packed = split(wire, (self._scales(layout), torch.float32), (bits, torch.uint8))
        signs = unpack(packed, (1, -1), layout.numel, layout.dtype)
        return signs, scales.to(layout.dtype).expand(len(layout.shapes)).unbind()

    def _scales(self, layout: Layout) -> int:
        return len(layout.shapes) if self.per_layer else 1

    def _counts(self, layout: Layout, norms: Tensor) -> Tensor:
        counts = [shape.numel() for shape in layout.shapes]
        return norms.new_tensor(counts if self.per_layer else [sum(counts)]).clamp_(min=1)


def _clear_between(parts: list[Tensor], x: Tensor) -> Tensor:
    """Zero what no part of x covers."""
    end = 0
    for part in parts:
        start = int(part.storage_offset() - x.storage_offset())
        x[end:start].zero_()
        end = start + part.numel()
    x[end:].zero_()
    return x
