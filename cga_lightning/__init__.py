"""Decentralized learning by Cross-Gradient Aggregation, as a PyTorch Lightning strategy.

`import cga_lightning` registers the strategy names, so that `Trainer(strategy="cga")` works.
"""

from __future__ import annotations

from cga_lightning import ops, partition
from cga_lightning.algorithms import (
    CGA,
    D2,
    DPSGD,
    EXTRA,
    GUT,
    KGT,
    NGC,
    SGP,
    Algorithm,
    DAMSGrad,
    DecentLaM,
    ExactDiffusion,
    GradientTracking,
    LocalSteps,
    PeriodicAveraging,
    QuasiGlobalMomentum,
    SwarmSGD,
    WireDtype,
)
from cga_lightning.compression import QSGD, Compressor, ErrorFeedback, Identity, RandomK, ScaledSign, TopK
from cga_lightning.core import Agent, LocalCommunicator, StepDriver
from cga_lightning.lightning import ConsensusMonitor, DecentralizedStrategy, PartitionedDataModule, SimulatedStrategy
from cga_lightning.topology import (
    BaseGraph,
    Bipartite,
    Complete,
    DirectedRing,
    ErdosRenyi,
    Exponential,
    FromMatrix,
    Hypercube,
    OnePeerExponential,
    Ring,
    SmallWorld,
    Star,
    Topology,
    Torus,
    Tree,
)

__version__ = "0.1.0"

__all__ = [
    "CGA",
    "D2",
    "DPSGD",
    "EXTRA",
    "GUT",
    "KGT",
    "NGC",
    "DAMSGrad",
    "DecentLaM",
    "PeriodicAveraging",
    "QSGD",
    "SGP",
    "Agent",
    "Algorithm",
    "BaseGraph",
    "Bipartite",
    "Complete",
    "Compressor",
    "ConsensusMonitor",
    "DecentralizedStrategy",
    "DirectedRing",
    "ErdosRenyi",
    "ErrorFeedback",
    "ExactDiffusion",
    "Exponential",
    "FromMatrix",
    "GradientTracking",
    "Identity",
    "LocalCommunicator",
    "LocalSteps",
    "OnePeerExponential",
    "PartitionedDataModule",
    "QuasiGlobalMomentum",
    "RandomK",
    "Ring",
    "ScaledSign",
    "SimulatedStrategy",
    "StepDriver",
    "SwarmSGD",
    "TopK",
    "Hypercube",
    "SmallWorld",
    "Star",
    "Topology",
    "Torus",
    "Tree",
    "WireDtype",
    "ops",
    "partition",
]
