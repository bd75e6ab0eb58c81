"""One bit per element."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cga_lightning.compression.base import Compressor, Layout
from cga_lightning.compression.bits import join, pack, packed_size, split, unpack

_SCALE = torch.bfloat16
_operators: Any = torch.ops.cga_lightning  # those of csrc/cpu/signs.cpp, if it is compiled


@dataclass(frozen=True)
class ScaledSign(Compressor):
    """One bit per element, and their mean modulus: `(||p||_1 / n) sign(p)` (Karimireddy et al. 2019).

    This is the compressor of CompCGA. The n elements that share a scale are a parameter, or each bucket of a larger one
    (Zheng et al. 2019): where whole rows of a gradient vanish, as those of a ReLU that is off, a scale of the whole
    parameter would send noise there. A scale is rounded to bfloat16, which error feedback makes up for. Zero has the
    sign of its bit, as a comparison would take twice the time.

    Args:
        per_layer: False takes one scale for the whole vector.
        bucket: the most elements of a parameter that share a scale; None for no limit.

    Raises:
        ValueError: `bucket` is less than 1.
    """

    per_layer: bool = True
    bucket: int | None = 256
    needs_feedback = True

    def __post_init__(self) -> None:
        if self.bucket is not None and self.bucket < 1:
            raise ValueError(f"ScaledSign needs bucket >= 1 or None, got {self.bucket}.")

    def wire_size(self, layout: Layout) -> int:
        """Bytes of every message: one bit per element, and the scales."""
        return _SCALE.itemsize * self._scales(layout) + packed_size(layout.numel, 2)

    def compress(self, x: Tensor, layout: Layout) -> Tensor:
        """Return the scales, then the signs."""
        wide = torch.promote_types(x.dtype, torch.float32)
        if self.per_layer:
            scales = torch.cat([rows.abs().mean(1, dtype=wide) for rows in self._rows(x, layout)])
        else:
            scales = x.abs().sum(dtype=wide)[None] / max(1, sum(shape.numel() for shape in layout.shapes))
        return join(scales.to(_SCALE), pack(x.signbit().view(torch.uint8), 2))

    def compress_with_memory_(self, memory: Tensor, x: Tensor, layout: Layout) -> Tensor:
        """Return the message for `memory + x`, as every `Compressor`; two passes over memory where that is compiled."""
        if not _is_compiled(memory):
            return super().compress_with_memory_(memory, x, layout)
        parts = self._parts(memory, layout)
        norms, packed = _operators.add_signs_(memory, x, parts)
        sizes = parts[1]
        if not self.per_layer:
            norms, sizes = norms.sum(0, keepdim=True), sizes.sum(0, keepdim=True)
        scales = (norms / sizes).float().to(_SCALE)
        _operators.scale_signs_(memory, packed, _expanded(scales, parts), parts, True)
        return join(scales, packed)

    def decompress(self, wire: Tensor, layout: Layout) -> Tensor:
        """Return each sign times its scale."""
        self._check(wire, layout)
        scales, packed = split(wire, (self._scales(layout), _SCALE), (packed_size(layout.numel, 2), torch.uint8))
        x = torch.empty(layout.numel, dtype=layout.dtype, device=wire.device)
        if _is_compiled(x):
            parts = self._parts(x, layout)
            _operators.scale_signs_(x, packed, _expanded(scales, parts), parts, False)
            return x
        signs = self._rows(unpack(packed, (1, -1), layout.numel, layout.dtype), layout)
        counts = [len(rows) for rows in signs]
        columns = torch.split(scales.to(x.dtype).expand(sum(counts))[:, None], counts)
        for rows, sign, scale in zip(self._rows(x.zero_(), layout), signs, columns, strict=True):
            torch.mul(sign, scale, out=rows)
        return x

    def _rows(self, x: Tensor, layout: Layout) -> list[Tensor]:
        """Views into x as matrices with a bucket per row."""
        return [rows for part in layout.views(x) for rows in _buckets(part.view(-1), self.bucket)]

    def _parts(self, x: Tensor, layout: Layout) -> Tensor:
        """Where the buckets lie in x: starts and sizes, int64 `[2, buckets]`."""
        rows = [(part.storage_offset() - x.storage_offset(), *part.shape) for part in self._rows(x, layout)]
        starts = [torch.arange(first, first + count * size, size) for first, count, size in rows]
        sizes = [torch.full((count,), size) for _, count, size in rows]
        return torch.stack([torch.cat(starts), torch.cat(sizes)])

    def _scales(self, layout: Layout) -> int:
        if not self.per_layer:
            return 1
        return sum(-(-shape.numel() // (self.bucket or max(1, shape.numel()))) for shape in layout.shapes)


def _buckets(part: Tensor, size: int | None) -> list[Tensor]:
    """The full buckets as one matrix, then what is left as a row."""
    size = size or max(1, part.numel())
    full = part.numel() - part.numel() % size
    return [rows for rows in (part[:full].view(-1, size), part[full:].view(1, -1)) if rows.numel()]


def _expanded(scales: Tensor, parts: Tensor) -> Tensor:
    """One float32 scale per bucket."""
    return scales.float().expand(parts.shape[1]).contiguous()


def _is_compiled(x: Tensor) -> bool:
    return x.is_cpu and x.dtype == torch.float32 and hasattr(_operators, "add_signs_")
