"""One bit per element."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cga_lightning.compression.base import Compressor, Layout
from cga_lightning.compression.bits import join, pack, packed_size, split, unpack

_operators: Any = torch.ops.cga_lightning  # those of csrc/cpu/signs.cpp, if it is compiled


@dataclass(frozen=True)
class ScaledSign(Compressor):
    """One bit per element and one scale per parameter: ``(||p||_1 / n) sign(p)`` (Karimireddy et al. 2019).

    This is the compressor of CompCGA. Zero has the sign of its bit, as a comparison takes twice the time. The scale is
    float32.

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
        norms = torch.stack([part.abs().sum(dtype=wide) for part in layout.views(x)])
        return join(self._means(norms, layout), pack(x.signbit().view(torch.uint8), 1))

    def compress_with_memory_(self, memory: Tensor, x: Tensor, layout: Layout) -> Tensor:
        """In two passes over memory where that is compiled, see `Compressor`."""
        if not _is_compiled(memory):
            return super().compress_with_memory_(memory, x, layout)
        norms, packed = _operators.add_signs_(memory, x, _parts(memory, layout))
        wire = join(self._means(norms, layout), packed)
        _operators.scale_signs_(memory, *self._read(wire, layout), _parts(memory, layout), True)
        return wire

    def decompress(self, wire: Tensor, layout: Layout) -> Tensor:
        """Return each sign times its scale."""
        packed, scales = self._read(wire, layout)
        x = torch.empty(layout.numel, dtype=layout.dtype, device=wire.device)
        if _is_compiled(x):
            _operators.scale_signs_(x, packed, scales, _parts(x, layout), False)
            return x
        signs = unpack(packed, (1, -1), layout.numel, layout.dtype)
        for part, sign, scale in zip(layout.views(x.zero_()), layout.views(signs), scales, strict=True):
            torch.mul(sign, scale, out=part)
        return x

    def _read(self, wire: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """The packed signs, and the scales of all parameters, float32 ``[s]``."""
        self._check(wire, layout)
        signs = packed_size(layout.numel, 1)
        scales, packed = split(wire, (self._scales(layout), torch.float32), (signs, torch.uint8))
        return packed, scales.expand(len(layout.shapes)).contiguous()

    def _scales(self, layout: Layout) -> int:
        return len(layout.shapes) if self.per_layer else 1

    def _means(self, norms: Tensor, layout: Layout) -> Tensor:
        """Of the magnitudes, given the 1-norm of each parameter: the scales."""
        counts = norms.new_tensor([shape.numel() for shape in layout.shapes])
        if not self.per_layer:
            norms, counts = norms.sum(0, keepdim=True), counts.sum(0, keepdim=True)
        return (norms / counts.clamp(min=1)).float()


def _is_compiled(x: Tensor) -> bool:
    return x.is_cpu and x.dtype == torch.float32 and hasattr(_operators, "add_signs_")


def _parts(x: Tensor, layout: Layout) -> Tensor:
    """Where the parameters lie in ``x`` ``[d]``: starts and sizes, int64 ``[2, s]``."""
    views = layout.views(x)
    starts = [view.storage_offset() - x.storage_offset() for view in views]
    return torch.tensor([starts, [view.numel() for view in views]], dtype=torch.int64)
