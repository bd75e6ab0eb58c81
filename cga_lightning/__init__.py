"""Decentralized learning by Cross-Gradient Aggregation, as a PyTorch Lightning strategy.

`import cga_lightning` registers the strategy names, so that `Trainer(strategy="cga")` works.
"""

from __future__ import annotations

from cga_lightning import ops, partition
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
from cga_lightning.compression import QSGD, Compressor, ErrorFeedback, Identity, RandomK, ScaledSign, TopK
from cga_lightning.core import Agent, LocalCommunicator, StepDriver
from cga_lightning.lightning import (
    ConsensusMonitor,
    DecentralizedStrategy,
    PartitionedDataModule,
    RunRecord,
    SimulatedStrategy,
)
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

__version__ = "0.1.0"

__all__ = [
    "CGA",
    "DPSGD",
    "NGC",
    "QSGD",
    "SGP",
    "Agent",
    "Algorithm",
    "Bipartite",
    "Complete",
    "Compressor",
    "ConsensusMonitor",
    "DecentralizedStrategy",
    "DirectedRing",
    "ErdosRenyi",
    "ErrorFeedback",
    "Exponential",
    "FromMatrix",
    "GradientTracking",
    "Identity",
    "LocalCommunicator",
    "OnePeerExponential",
    "PartitionedDataModule",
    "QuasiGlobalMomentum",
    "RandomK",
    "Ring",
    "RunRecord",
    "ScaledSign",
    "SimulatedStrategy",
    "StepDriver",
    "SwarmSGD",
    "TopK",
    "Topology",
    "Torus",
    "WireDtype",
    "ops",
    "partition",
]
