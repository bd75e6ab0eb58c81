"""Decentralized algorithms: one method, one file, one readable step."""

from collections.abc import Callable

from cga_lightning.algorithms.base import Algorithm, Messages, Step
from cga_lightning.algorithms.cga import CGA
from cga_lightning.algorithms.dpsgd import DPSGD
from cga_lightning.compression import ScaledSign

__all__ = ["ALGORITHMS", "CGA", "DPSGD", "Algorithm", "Messages", "Step", "from_name"]

ALGORITHMS: dict[str, Callable[[], Algorithm]] = {
    "cga": CGA,
    "compcga": lambda: CGA(compressor=ScaledSign()),
    "dpsgd": DPSGD,
}


def from_name(name: str) -> Algorithm:
    """The algorithm of that name, with its defaults.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in ALGORITHMS:
        raise ValueError(f"Unknown algorithm {name!r}; choose one of {', '.join(map(repr, ALGORITHMS))}.")
    return ALGORITHMS[name]()
