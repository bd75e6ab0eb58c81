"""Decentralized algorithms: one method, one file, one readable step."""

from collections.abc import Callable

from cga_lightning.algorithms.cga import CGA
from cga_lightning.algorithms.damsgrad import DAMSGrad
from cga_lightning.algorithms.decentlam import DecentLaM
from cga_lightning.algorithms.differences import Compressed
from cga_lightning.algorithms.dpsgd import DPSGD
from cga_lightning.algorithms.exact_diffusion import D2, EXTRA, ExactDiffusion
from cga_lightning.algorithms.gut import GUT
from cga_lightning.algorithms.kgt import KGT
from cga_lightning.algorithms.local_steps import LocalSteps
from cga_lightning.algorithms.ngc import NGC
from cga_lightning.algorithms.periodic_averaging import PeriodicAveraging
from cga_lightning.algorithms.quasi_global import QuasiGlobalMomentum
from cga_lightning.algorithms.relay import RelaySGD
from cga_lightning.algorithms.sgp import SGP
from cga_lightning.algorithms.swarm import SwarmSGD
from cga_lightning.algorithms.tracking import GradientTracking
from cga_lightning.algorithms.wire_dtype import WireDtype
from cga_lightning.core.algorithm import Algorithm, Exchange, LazyMessages, Messages, Step, gossip
from cga_lightning.names import lookup

__all__ = [
    "ALGORITHMS",
    "CGA",
    "D2",
    "DPSGD",
    "EXTRA",
    "GUT",
    "KGT",
    "NGC",
    "SGP",
    "Algorithm",
    "Compressed",
    "DAMSGrad",
    "DecentLaM",
    "ExactDiffusion",
    "Exchange",
    "GradientTracking",
    "LazyMessages",
    "LocalSteps",
    "Messages",
    "PeriodicAveraging",
    "QuasiGlobalMomentum",
    "RelaySGD",
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
    "relaysgd": RelaySGD,
    "relay": lambda: RelaySGD(hops=3, gradients=True),
    "d2": D2,
    "exact_diffusion": ExactDiffusion,
    "extra": EXTRA,
    "kgt": KGT,
    "gut": GUT,
    "decentlam": DecentLaM,
    "damsgrad": DAMSGrad,
}


def from_name(name: str) -> Algorithm:
    """The algorithm of that name, with its defaults.

    Raises:
        ValueError: there is none of that name.
    """
    return lookup("algorithm", ALGORITHMS, name)()
