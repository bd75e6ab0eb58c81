"""Few levels per element, rounded at random."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from cga_lightning.compression.base import Layout, RandomCompressor
from cga_lightning.compression.bits import join, pack, packed_size, split, unpack


@dataclass(frozen=True)
class QSGD(RandomCompressor):
    """Stochastic rounding of each bucket to `2^(bits-1) - 1` levels of its 2-norm (Alistarh et al. 2017).

    Right on average. The variance grows with `bucket` and falls with the number of levels.

    Args:
        bits: per element, with the sign: 2, 4 or 8.
        bucket: elements that share one float32 norm.
        seed: of the rounding.

    Raises:
        ValueError: `bits` or `bucket` is out of range.
    """

    bits: int = 4
    bucket: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.bits not in (2, 4, 8) or self.bucket < 1:
            raise ValueError(f"QSGD needs bits in (2, 4, 8) and bucket >= 1, got {self!r}.")

    def wire_size(self, layout: Layout) -> int:
        """Bytes of every message: `bits` per element, and a norm per bucket."""
        return 4 * self._buckets(layout) + packed_size(self._padded(layout), 1 << self.bits)

    def compress(self, x: Tensor, layout: Layout) -> Tensor:
        """Return the norms, then the rounded elements."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        rows = torch.nn.functional.pad(wide, (0, self._padded(layout) - x.numel())).view(-1, self.bucket)
        norms = rows.norm(dim=1, keepdim=True)
        noise = torch.rand(rows.shape, dtype=rows.dtype, device=x.device, generator=self._noise(x.device))
        scaled = rows / norms.where(norms > 0, 1) * self._levels
        codes = noise.add_(scaled).floor_().clamp_(-self._levels, self._levels).add_(self._levels)
        codes = codes.nan_to_num_().to(torch.uint8)  # the norm tells that the bucket is not finite
        return join(norms.float(), pack(codes.view(-1), 1 << self.bits))

    def decompress(self, wire: Tensor, layout: Layout) -> Tensor:
        """Return each level times the norm of its bucket."""
        self._check(wire, layout)
        size = packed_size(self._padded(layout), 1 << self.bits)
        norms, packed = split(wire, (self._buckets(layout), torch.float32), (size, torch.uint8))
        values = tuple(range(-self._levels, self._levels + 2))
        rows = unpack(packed, values, self._padded(layout), layout.dtype).view(-1, self.bucket)
        return rows.mul_(norms[:, None] / self._levels).view(-1)[: layout.numel]

    @property
    def _levels(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def _buckets(self, layout: Layout) -> int:
        return ceil(layout.numel / self.bucket)

    def _padded(self, layout: Layout) -> int:
        return self._buckets(layout) * self.bucket

    def _noise(self, device: torch.device) -> torch.Generator:
        return torch.Generator(device).manual_seed(int(self._draw(2**62)))
