"""Small codes packed into bytes, and tensors joined into one message: plain, vectorised torch."""

from functools import lru_cache

import torch
from torch import Tensor

_LANES = {2: torch.int64, 4: torch.int32, 16: torch.int16}
"""By base: an integer as wide as the codes of one packed byte, where these are bits."""


def per_byte(base: int) -> int:
    """How many codes below `base`, 2 to 256, are the digits of one byte."""
    return max(count for count in range(1, 9) if base**count <= 256)


def packed_size(count: int, base: int) -> int:
    """Bytes that `count` codes below `base` take."""
    return -(-count // per_byte(base))


def pack(codes: Tensor, base: int) -> Tensor:
    """Pack uint8 codes `[n]` below `base` into uint8 `[packed_size(n, base)]`, lowest digits first.

    Where digits are bits, the codes of one byte are seen as one wide integer; one product brings each to its place in
    the highest byte.
    """
    count = per_byte(base)
    if count == 1:
        return codes
    missing = -codes.numel() % count
    lanes = torch.nn.functional.pad(codes, (0, missing)) if missing else codes
    if base not in _LANES:
        return lanes.view(-1, count).mul(_places(base, codes.device)).sum(1, dtype=torch.uint8)
    bits, top = 8 // count, 8 * (count - 1)
    gather = sum(1 << (top - i * (8 - bits)) for i in range(count))  # code i goes from bit 8 i to bit top + bits * i
    return lanes.view(_LANES[base]).mul(gather).bitwise_right_shift_(top).to(torch.uint8)


def unpack(packed: Tensor, values: tuple[int, ...], count: int, dtype: torch.dtype) -> Tensor:
    """Read the first `count` codes that `pack` packed; code c becomes `values[c]`, of `dtype`.

    The number of values tells the base. One row of a table is copied per byte.
    """
    table = _table(values, dtype, packed.device)
    return table.index_select(0, packed.int()).view(-1)[:count]


def join(*parts: Tensor) -> Tensor:
    """One message: the bytes of contiguous tensors in a row, uint8."""
    return torch.cat([part.contiguous().view(-1).view(torch.uint8) for part in parts])


def split(message: Tensor, *fields: tuple[int, torch.dtype]) -> list[Tensor]:
    """Take apart what `join` joined, given the length and dtype of each part; the parts are copies."""
    sizes = [count * dtype.itemsize for count, dtype in fields]
    pieces = zip(torch.split(message, sizes), fields, strict=True)
    return [piece.clone().view(dtype) for piece, (_, dtype) in pieces]


def _places(base: int, device: torch.device) -> Tensor:
    """What each digit of a byte counts."""
    return torch.tensor([base**digit for digit in range(per_byte(base))], dtype=torch.uint8, device=device)


@lru_cache(maxsize=32)
def _table(values: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`[256, codes per byte]`: the values of the codes in every byte."""
    base = len(values)
    codes = torch.arange(256)[:, None] // _places(base, torch.device("cpu")).long() % base
    return torch.tensor(values)[codes].to(device, dtype)
