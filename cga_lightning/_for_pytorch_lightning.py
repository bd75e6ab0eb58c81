"""The public classes for users of `pytorch_lightning`."""

import pytorch_lightning as pl
from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher
from pytorch_lightning.trainer.call import _interrupt

from cga_lightning.data import Partitioned
from cga_lightning.launching import PromptLauncher
from cga_lightning.metrics import Monitor
from cga_lightning.registration import register
from cga_lightning.simulation import Simulated
from cga_lightning.strategy import Decentralized


class Launcher(PromptLauncher, _MultiProcessingLauncher):
    interrupt = _interrupt


class DecentralizedStrategy(Decentralized, pl.strategies.DDPStrategy):
    __doc__ = Decentralized.__doc__
    multiprocessing_launcher = Launcher


class SimulatedStrategy(Simulated, pl.strategies.SingleDeviceStrategy):
    __doc__ = Simulated.__doc__


class PartitionedDataModule(Partitioned, pl.LightningDataModule):
    __doc__ = Partitioned.__doc__


class ConsensusMonitor(Monitor, pl.Callback):
    __doc__ = Monitor.__doc__


register(pl.strategies.StrategyRegistry, DecentralizedStrategy)
