"""Compressors: a flat vector in fewer bytes, as one message whose size both ends know beforehand.

A compressor turns `x` `[d]` into a uint8 message of `wire_size(layout)` bytes and back. Nothing else travels.
Compressors with `needs_feedback` are wrong on average; they converge only inside an `ErrorFeedback`, which sends later
what was lost.

A new compressor is one subclass of `Compressor` with three methods; CONTRIBUTING.md says where its name goes.
"""

from cga_lightning.compression.base import Compressor, Layout
from cga_lightning.compression.feedback import ErrorFeedback
from cga_lightning.compression.identity import Identity
from cga_lightning.compression.levels import Rounded, Ternary
from cga_lightning.compression.qsgd import QSGD
from cga_lightning.compression.sign import ScaledSign
from cga_lightning.compression.sparse import RandomK, TopK
from cga_lightning.names import lookup

__all__ = [
    "ErrorFeedback",
    "Compressor",
    "Identity",
    "Layout",
    "QSGD",
    "RandomK",
    "Rounded",
    "ScaledSign",
    "Ternary",
    "TopK",
    "COMPRESSORS",
    "from_name",
]

COMPRESSORS: dict[str, type[Compressor]] = {
    "identity": Identity,
    "scaled_sign": ScaledSign,
    "top_k": TopK,
    "random_k": RandomK,
    "qsgd": QSGD,
    "rounded": Rounded,
    "ternary": Ternary,
}


def from_name(name: str) -> Compressor:
    """The compressor of that name, with its default settings.

    Raises:
        ValueError: there is none of that name.
    """
    return lookup("compressor", COMPRESSORS, name)()
