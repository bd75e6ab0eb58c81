"""Small codes packed into bytes, and tensors joined into one message: plain, vectorised torch."""

from functools import lru_cache

import torch
from torch import Tensor

_LANES = {
    1: torch.int64,
    2: torch.int32,
    4: torch.int16,
}  # an integer as wide as the codes of one packed byte


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` (1, 2, 4 or 8) take."""
    return -(-count * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack uint8 codes `[n]` below `2**bits` into uint8 `[packed_size(n, bits)]`, lowest bits first.

    The codes of one byte are seen as one wide integer; one product brings each to its place in the highest byte.
    """
    if bits == 8:
        return codes
    count = 8 // bits
    missing = -codes.numel() % count
    lanes = torch.nn.functional.pad(codes, (0, missing)) if missing else codes
    top = 8 * (count - 1)
    gather = sum(1 << (top - i * (8 - bits)) for i in range(count))  # code i goes from bit 8 i to bit top + bits * i
    return lanes.view(_LANES[bits]).mul(gather).bitwise_right_shift_(top).to(torch.uint8)


def unpack(packed: Tensor, values: tuple[int, ...], count: int, dtype: torch.dtype) -> Tensor:
    """Read the first `count` codes that `pack` packed; code c becomes `values[c]`, of `dtype`.

    The number of values, `2**bits`, tells the width of a code. One row of a table is copied per byte.
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


@lru_cache(maxsize=32)
def _table(values: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`[256, codes per byte]`: the values of the codes in every byte."""
    bits = (len(values) - 1).bit_length()
    codes = torch.arange(256)[:, None] >> torch.arange(0, 8, bits)
    return torch.tensor(values)[codes & (len(values) - 1)].to(device, dtype)
