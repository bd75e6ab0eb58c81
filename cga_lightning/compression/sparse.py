"""A few elements with their positions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import isqrt

import torch
from torch import Tensor

from cga_lightning.compression.base import Compressor, Layout, RandomCompressor
from cga_lightning.compression.bits import join, split
from cga_lightning.copies import to_device


@dataclass(frozen=True)
class TopK(Compressor):
    """The `ratio * d` elements largest in modulus, with their positions.

    Raises:
        ValueError: `ratio` is not in (0, 1].
    """

    ratio: float = 0.01
    needs_feedback = True

    def __post_init__(self) -> None:
        _check_ratio(self)

    def wire_size(self, layout: Layout) -> int:
        """Bytes of every message: a value and an int32 position per element kept."""
        return _kept(self.ratio, layout) * (layout.dtype.itemsize + 4)

    def compress(self, x: Tensor, layout: Layout) -> Tensor:
        """Return the positions, then the values."""
        positions = x.abs().topk(_kept(self.ratio, layout), sorted=False).indices
        return join(positions.int(), x[positions])

    def decompress(self, wire: Tensor, layout: Layout) -> Tensor:
        """Return the values at their positions, zeros elsewhere."""
        self._check(wire, layout)
        k = _kept(self.ratio, layout)
        positions, values = split(wire, (k, torch.int32), (k, layout.dtype))
        return values.new_zeros(layout.numel).index_copy_(0, positions.long(), values)


@dataclass(frozen=True)
class RandomK(RandomCompressor):
    """`k = ratio * d` elements drawn at random; two numbers in the message tell their positions.

    Position i < k is `(a i + b) mod P`, with P the first prime >= d, and a, b drawn for each message. Any two positions
    are as independent as in a random permutation, so mean and variance are the same. Of the k, those that fall in
    [d, P) carry nothing.

    Args:
        ratio: k / d.
        seed: of the draws.
        scaled: multiply by P / k, which makes the result right on average; False is for error feedback.

    Raises:
        ValueError: `ratio` is not in (0, 1].
    """

    ratio: float = 0.01
    seed: int = 0
    scaled: bool = False

    def __post_init__(self) -> None:
        _check_ratio(self)

    @property
    def needs_feedback(self) -> bool:
        """Whether it converges only inside `ErrorFeedback`: unless it is scaled."""
        return not self.scaled

    def wire_size(self, layout: Layout) -> int:
        """Bytes of every message: two int64, and a value per element kept."""
        return 16 + _kept(self.ratio, layout) * layout.dtype.itemsize

    def compress(self, x: Tensor, layout: Layout) -> Tensor:
        """Return a and b, then the values; positions from d to P hold zeros."""
        prime, k = _prime_from(layout.numel), _kept(self.ratio, layout)
        line = to_device(torch.cat([self._draw(prime - 1) + 1, self._draw(prime)]), x.device)
        positions = _positions(line, k, prime)
        values = x[positions.clamp(max=layout.numel - 1)] * (positions < layout.numel)
        return join(line, values * (prime / k) if self.scaled else values)

    def decompress(self, wire: Tensor, layout: Layout) -> Tensor:
        """Return the values at their positions, zeros elsewhere."""
        self._check(wire, layout)
        prime, k = _prime_from(layout.numel), _kept(self.ratio, layout)
        line, values = split(wire, (2, torch.int64), (k, layout.dtype))
        return values.new_zeros(prime).index_copy_(0, _positions(line, k, prime), values)[: layout.numel]


def _check_ratio(compressor: TopK | RandomK) -> None:
    if not 0 < compressor.ratio <= 1:
        raise ValueError(f"{type(compressor).__name__} needs 0 < ratio <= 1, got {compressor.ratio}.")


def _kept(ratio: float, layout: Layout) -> int:
    return max(1, round(ratio * layout.numel))


def _positions(line: Tensor, count: int, prime: int) -> Tensor:
    slope, start = line.unbind()
    return (slope * torch.arange(count, device=line.device) + start) % prime


@lru_cache(maxsize=64)
def _prime_from(number: int) -> int:
    """The first prime >= number, and at least 2."""
    candidate = max(2, number)
    while any(candidate % divisor == 0 for divisor in range(2, isqrt(candidate) + 1)):
        candidate += 1
    return candidate
