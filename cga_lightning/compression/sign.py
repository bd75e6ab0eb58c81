"""One bit per element."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cga_lightning.compression.base import Compressor, Layout
from cga_lightning.compression.bits import join, pack, packed_size, split, unpack

_SCALE = torch.bfloat16


@dataclass(frozen=True)
class ScaledSign(Compressor):
    """One bit per element, and their mean modulus: ``(||p||_1 / n) sign(p)`` (Karimireddy et al. 2019).

    This is the compressor of CompCGA. The n elements that share a scale are a parameter, or each bucket of a larger one
    (Zheng et al. 2019): where whole rows of a gradient vanish, as those of a ReLU that is off, a scale of the whole
    parameter would send noise there. A scale is rounded to bfloat16, which error feedback makes up for. Zero has the
    sign of its bit, as a comparison would take twice the time.

    Args:
        per_layer: False takes one scale for the whole vector.
        bucket: the most elements of a parameter that share a scale; None for no limit.

    Raises:
        ValueError: ``bucket`` is less than 1.
    """

    per_layer: bool = True
    bucket: int | None = 256
    needs_feedback = True

    def __post_init__(self) -> None:
        if self.bucket is not None and self.bucket < 1:
            raise ValueError(f"ScaledSign needs bucket >= 1 or None, got {self.bucket}.")

    def wire_size(self, layout: Layout) -> int:
        """d bits and the scales."""
        return _SCALE.itemsize * self._scales(layout) + packed_size(layout.numel, 1)

    def compress(self, x: Tensor, layout: Layout) -> Tensor:
        """Return the scales, then the signs."""
        wide = torch.promote_types(x.dtype, torch.float32)
        scales = torch.cat([rows.abs().mean(1, dtype=wide) for rows in self._rows(x, layout)])
        if not self.per_layer:
            scales *= x.numel() / max(1, _elements(layout))  # without the padding
        return join(scales.to(_SCALE), pack(x.signbit().view(torch.uint8), 1))

    def decompress(self, wire: Tensor, layout: Layout) -> Tensor:
        """Return each sign times its scale."""
        signs, scales = self._read(wire, layout)
        for rows, scale in zip(self._rows(signs, layout), scales, strict=True):
            rows.mul_(scale)
        return signs

    def subtract_(self, x: Tensor, wire: Tensor, layout: Layout) -> None:
        """Multiply and subtract at once."""
        signs, scales = self._read(wire, layout)
        for rows, sign, scale in zip(self._rows(x, layout), self._rows(signs, layout), scales, strict=True):
            rows.addcmul_(sign, scale, value=-1)

    def _read(self, wire: Tensor, layout: Layout) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The signs ``[d]``, 0 in the padding, and a column of scales for every matrix of `_rows`."""
        self._check(wire, layout)
        bits = packed_size(layout.numel, 1)
        scales, packed = split(wire, (self._scales(layout), _SCALE), (bits, torch.uint8))
        signs = unpack(packed, (1, -1), layout.numel, layout.dtype)
        _clear_between(layout.views(signs), signs)
        counts = [len(rows) for rows in self._rows(signs, layout)]
        return signs, torch.split(scales.to(layout.dtype)[:, None], counts)

    def _rows(self, x: Tensor, layout: Layout) -> list[Tensor]:
        """Views into x as matrices with one scale per row."""
        if not self.per_layer:
            return [x.view(1, -1)]
        return [rows for part in layout.views(x) for rows in _buckets(part.view(-1), self.bucket)]

    def _scales(self, layout: Layout) -> int:
        if not self.per_layer:
            return 1
        return sum(-(-shape.numel() // (self.bucket or max(1, shape.numel()))) for shape in layout.shapes)


def _buckets(part: Tensor, size: int | None) -> list[Tensor]:
    """The full buckets as one matrix, then what is left as a row."""
    size = size or max(1, part.numel())
    full = part.numel() - part.numel() % size
    return [rows for rows in (part[:full].view(-1, size), part[full:].view(1, -1)) if rows.numel()]


def _elements(layout: Layout) -> int:
    return sum(shape.numel() for shape in layout.shapes)


def _clear_between(parts: list[Tensor], x: Tensor) -> None:
    """Zero what no part of x covers."""
    end = 0
    for part in parts:
        start = int(part.storage_offset() - x.storage_offset())
        x[end:start].zero_()
        end = start + part.numel()
    x[end:].zero_()
