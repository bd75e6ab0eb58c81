"""Decentralized algorithms: one method, one file, one readable step."""

from collections.abc import Callable

from cga_lightning.algorithms.cga import CGA
from cga_lightning.algorithms.dpsgd import DPSGD
from cga_lightning.algorithms.ngc import NGC
from cga_lightning.algorithms.quasi_global import QuasiGlobalMomentum
from cga_lightning.algorithms.sgp import SGP
from cga_lightning.algorithms.swarm import SwarmSGD
from cga_lightning.algorithms.tracking import GradientTracking
from cga_lightning.algorithms.wire_dtype import WireDtype
from cga_lightning.core.algorithm import Algorithm, Exchange, LazyMessages, Messages, Step, gossip
from cga_lightning.names import lookup

__all__ = [
    "ALGORITHMS",
    "CGA",
    "DPSGD",
    "NGC",
    "SGP",
    "Algorithm",
    "Exchange",
    "GradientTracking",
    "LazyMessages",
    "Messages",
    "QuasiGlobalMomentum",
    "Step",
    "SwarmSGD",
    "WireDtype",
    "from_name",
    "gossip",
]

ALGORITHMS: dict[str, Callable[[], Algorithm]] = {
    "cga": CGA,
    "compcga": lambda: CGA(compressor="scaled_sign"),
    "dpsgd": DPSGD,
    "sgp": SGP,
    "swarmsgd": SwarmSGD,
    "ngc": NGC,
    "compngc": lambda: NGC(compressor="scaled_sign"),
    "gradient_tracking": GradientTracking,
}


def from_name(name: str) -> Algorithm:
    """The algorithm of that name, with its defaults.

    Raises:
        ValueError: there is none of that name.
    """
    return lookup("algorithm", ALGORITHMS, name)()
