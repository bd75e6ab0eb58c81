"""A few equally spaced levels per element."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cga_lightning.compression.base import Compressor, Layout
from cga_lightning.compression.bits import join, pack, packed_size, split, unpack

BUCKET = 256
"""Elements that share a scale."""
_SCALE = torch.float32
_operators: Any = torch.ops.cga_lightning  # those of csrc/cpu/levels.cpp, if it is compiled


class _Levels(Compressor):
    """Rounds every element to the nearest of L levels on each side of zero; the scale is the largest modulus over L.

    Where an element is not finite its whole bucket arrives as NaN.
    """

    needs_feedback = True

    @property
    @abstractmethod
    def _base(self) -> int:
        """How many values a code has: 2 L + 1, or one more that is not used."""

    @property
    def _levels(self) -> int:
        return (self._base - 1) // 2

    def wire_size(self, layout: Layout) -> int:
        """Bytes of every message: a code per element, and a float32 scale per 256 elements."""
        return _SCALE.itemsize * _buckets(layout) + packed_size(layout.numel, self._base)

    def compress(self, x: Tensor, layout: Layout) -> Tensor:
        """Return the scales, then the levels."""
        if _is_compiled(x):
            return join(*_operators.encode_levels(x, self._base))
        wide = x.to(torch.promote_types(x.dtype, _SCALE))
        rows = torch.nn.functional.pad(wide, (0, -len(x) % BUCKET)).view(-1, BUCKET)
        scales = rows.abs().amax(1).div_(rows.new_tensor(self._levels)).to(_SCALE)
        scales = scales.clamp(max=_largest_scale(self._levels)).where(scales.isfinite(), torch.inf)
        levels = (rows / scales.where(scales > 0, 1)[:, None]).round_().clamp_(-self._levels, self._levels)
        codes = levels.nan_to_num_().add_(self._levels).to(torch.uint8)
        return join(scales, pack(codes.view(-1)[: len(x)], self._base))

    def compress_with_memory_(self, memory: Tensor, x: Tensor, layout: Layout) -> Tensor:
        """Return the message for `memory + x`, as every `Compressor`; one pass over memory where that is compiled."""
        if not _is_compiled(memory):
            return super().compress_with_memory_(memory, x, layout)
        return join(*_operators.encode_levels_(memory, x, self._base))

    def decompress(self, wire: Tensor, layout: Layout) -> Tensor:
        """Return each level times its scale."""
        self._check(wire, layout)
        size = packed_size(layout.numel, self._base)
        scales, packed = split(wire, (_buckets(layout), _SCALE), (size, torch.uint8))
        if layout.dtype == torch.float32 and _is_compiled(scales):
            decoded: Tensor = _operators.decode_levels(scales, packed, layout.numel, self._base)
            return decoded
        wide = torch.promote_types(layout.dtype, _SCALE)
        levels = unpack(packed, tuple(range(-self._levels, self._base - self._levels)), layout.numel, wide)
        return levels.mul_(scales.repeat_interleave(BUCKET)[: layout.numel]).to(layout.dtype)


@dataclass(frozen=True)
class Rounded(_Levels):
    """Rounding to the nearest of `2^(bits-1) - 1` levels on each side of zero, always the same for the same vector.

    With s = max |x| / (2^(bits-1) - 1) over 256 elements in a row, each becomes s round(x / s), a tie the even level.
    The largest element of every 256 loses nothing, and none more than s / 2. Made for the differences that `Compressed`
    and `RelaySGD` send; of a gradient, error feedback makes up for what is lost.

    Args:
        bits: per element: 2, 4 or 8.

    Raises:
        ValueError: other bits.
    """

    bits: int = 4

    def __post_init__(self) -> None:
        if self.bits not in (2, 4, 8):
            raise ValueError(f"Rounded needs bits in (2, 4, 8), got {self.bits!r}.")

    @property
    def _base(self) -> int:
        return 1 << self.bits


@dataclass(frozen=True)
class Ternary(_Levels):
    """-1, 0 or 1 times the largest modulus of 256 elements in a row: 0 up to half of it. Five elements take a byte.

    1.6 bits per element and a scale, where `ScaledSign` takes 1. A sign is never zero, and sends the mean modulus also
    where a gradient vanishes.

    Source: Wen et al., "TernGrad: Ternary Gradients to Reduce Communication in Distributed Deep Learning", NeurIPS
    2017, rounded to the nearest and with error feedback instead of at random.
    """

    @property
    def _base(self) -> int:
        return 3


def _largest_scale(levels: int) -> float:
    """Of float32, one whose last level is finite."""
    scale = torch.tensor(torch.finfo(_SCALE).max, dtype=_SCALE) / levels
    return float(scale if (scale * levels).isfinite() else scale.nextafter(torch.zeros_like(scale)))


def _buckets(layout: Layout) -> int:
    return -(-layout.numel // BUCKET)


def _is_compiled(x: Tensor) -> bool:
    return x.is_cpu and x.dtype == torch.float32 and hasattr(_operators, "encode_levels")
