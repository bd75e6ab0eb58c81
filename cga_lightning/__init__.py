"""Decentralized learning by Cross-Gradient Aggregation, as a PyTorch Lightning strategy.

`import cga_lightning` registers the strategy names, so that `Trainer(strategy="cga")` works.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cga_lightning import _lightning, ops, partition
from cga_lightning.algorithms import (
    CGA,
    DPSGD,
    NGC,
    SGP,
    Algorithm,
    GradientTracking,
    QuasiGlobalMomentum,
    SwarmSGD,
    WireDtype,
)
from cga_lightning.compression import QSGD, RandomK, ScaledSign, TopK
from cga_lightning.topology import (
    Bipartite,
    Complete,
    DirectedRing,
    ErdosRenyi,
    Exponential,
    FromMatrix,
    OnePeerExponential,
    Ring,
    Topology,
    Torus,
)

if TYPE_CHECKING:
    from cga_lightning._for_pytorch_lightning import (
        ConsensusMonitor,
        DecentralizedStrategy,
        PartitionedDataModule,
        SimulatedStrategy,
    )

__version__ = "0.1.0"

__all__ = [
    "CGA",
    "DPSGD",
    "NGC",
    "QSGD",
    "SGP",
    "Algorithm",
    "Bipartite",
    "Complete",
    "ConsensusMonitor",
    "DecentralizedStrategy",
    "DirectedRing",
    "ErdosRenyi",
    "Exponential",
    "FromMatrix",
    "GradientTracking",
    "OnePeerExponential",
    "PartitionedDataModule",
    "QuasiGlobalMomentum",
    "RandomK",
    "Ring",
    "ScaledSign",
    "SimulatedStrategy",
    "SwarmSGD",
    "TopK",
    "Topology",
    "Torus",
    "WireDtype",
    "ops",
    "partition",
]

_IN_TREE = ("ConsensusMonitor", "DecentralizedStrategy", "PartitionedDataModule", "SimulatedStrategy")


def __getattr__(name: str) -> type:
    if name in _IN_TREE:
        return _lightning.public_class(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_lightning.install()
