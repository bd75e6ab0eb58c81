"""Bytes that a projection moves on a CUDA device, counted from its launch plan: no device is needed."""

import re
from itertools import product
from typing import NamedTuple

from cga_lightning.ops._plan import ITEM_BYTES, SLOTS_PER_GROUP, Addresses, Device, Plan


class Traffic(NamedTuple):
    """Bytes of one call in which every cross-gradient has a weight."""

    kernel: str
    least: int  # every row for the products, the same again and the result for the combination
    memory: int  # with partial sums, Gram matrices and weights; a row that is read again at once is in the cache
    issued: int  # what the loads and stores of all threads add up to


def traffic(rows: int, length: int, dtype: str = "f32", capability: tuple[int, int] = (9, 0)) -> Traffic:
    """Count for K rows of a length in one segment."""
    plan = Plan(dtype, rows, (0, length), Device(capability, 132), Addresses([0] * rows, 0, 0), ridge=1e-6)
    row = length * ITEM_BYTES[dtype]
    least = (2 * (rows + 1) + 1) * row
    groups = -(-plan.slots // SLOTS_PER_GROUP)
    # A partial sum is written and read; so is that of a group, and a Gram matrix. Every block reads the weights.
    partials = 2 * 8 * plan.pairs * (plan.slots + groups)
    small = partials + 2 * 8 * (rows + 1) ** 2 + 8 * rows * (plan.slots + 1)
    return Traffic(plan.gram.kernel, least, least + small, least + small + (_loaded(plan) - rows - 1) * row)


def _loaded(plan: Plan) -> int:
    """Return how many rows the blocks of a slot load: the last are repeats of the own gradient."""
    if plan.gram.tiles > 1:
        return 16 * plan.gram.tiles
    kind, size = re.match(r"gram_(rows|mma)(\d+)", plan.gram.kernel).groups()  # type: ignore[union-attr]
    return int(size) * (8 if kind == "mma" else 1)


def table(rows: list[int], sizes: list[int]) -> None:
    """Print the counts; for devices without the tensor cores of sm_80 only where they take another kernel."""
    print("\nCUDA, counted from the code, nothing measured: a call in float32 with all rows active")
    for capability, count, length in product(((9, 0), (7, 5)), rows, sizes):
        found = traffic(count, length, capability=capability)
        if capability == (7, 5) and "tile" not in found.kernel:
            continue
        memory, issued = found.memory / found.least, found.issued / found.least
        print(
            f"  K={count:<3d} d={length:<9d} {found.kernel:15s} least {found.least / 1e6:10.3f} MB, "
            f"from memory {memory:6.3f} x, with the caches {issued:6.2f} x"
        )
