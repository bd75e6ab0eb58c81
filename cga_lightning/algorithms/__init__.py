"""Decentralized algorithms: one method, one file, one readable step."""

from cga_lightning.algorithms.base import Algorithm, Messages, Step
from cga_lightning.algorithms.cga import CGA
from cga_lightning.algorithms.dpsgd import DPSGD

__all__ = ["CGA", "DPSGD", "Algorithm", "Messages", "Step", "from_name"]

_BY_NAME: dict[str, type[Algorithm]] = {"cga": CGA, "dpsgd": DPSGD}


def from_name(name: str) -> Algorithm:
    """The algorithm of that name, with its defaults.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in _BY_NAME:
        raise ValueError(f"Unknown algorithm {name!r}; choose one of {', '.join(map(repr, _BY_NAME))}.")
    return _BY_NAME[name]()
