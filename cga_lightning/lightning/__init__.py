"""The layer above the algorithms: strategies, a data module and a callback for Lightning."""

from pytorch_lightning.strategies import StrategyRegistry

from cga_lightning.lightning import trees
from cga_lightning.lightning.data import PartitionedDataModule
from cga_lightning.lightning.decentralized import DecentralizedStrategy
from cga_lightning.lightning.monitor import ConsensusMonitor
from cga_lightning.lightning.registration import register
from cga_lightning.lightning.run_record import RunRecord
from cga_lightning.lightning.simulated import SimulatedStrategy

__all__ = ["ConsensusMonitor", "DecentralizedStrategy", "PartitionedDataModule", "RunRecord", "SimulatedStrategy"]

register(StrategyRegistry, DecentralizedStrategy)

if (lightning := trees.other_tree()) is not None:
    register(lightning.strategies.StrategyRegistry, DecentralizedStrategy)
    for public in (ConsensusMonitor, DecentralizedStrategy, PartitionedDataModule, RunRecord, SimulatedStrategy):
        trees.offer(public)
