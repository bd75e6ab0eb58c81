"""Trains under one Lightning tree; run by test_lightning_trees in a process of its own, since the import order matters.

Arguments: the modules to import, in this order; the last tree among them is the one to train with. "class" in between
takes the public classes out of the package right there.
"""

import importlib
import sys
import warnings
from functools import partial

TREES = ("pytorch_lightning", "lightning.pytorch")


def public_classes(module="cga_lightning"):
    package = importlib.import_module(module)
    return package.DecentralizedStrategy, package.SimulatedStrategy, package.PartitionedDataModule


steps = sys.argv[1].split(",")
classes = None
for step in steps:
    if step == "class":
        classes = public_classes()
    else:
        importlib.import_module(step)
used = [step for step in steps if step in TREES]
pl = sys.modules[used[-1]]

import torch  # noqa: E402
from torch.utils.data import TensorDataset  # noqa: E402


class Line(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return (self.layer(x).squeeze(1) - y).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(strategy, devices, data_module):
    torch.manual_seed(0)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(accelerator="cpu", devices=devices, strategy=strategy, max_steps=3, max_epochs=-1, **quiet)
    assert isinstance(trainer.strategy, pl.strategies.Strategy)
    module = Line()
    x, y = torch.randn(12, 2, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 2
    trainer.fit(module, datamodule=data_module(TensorDataset(x, y.float()), batch_size=2))
    return module.layer.weight.detach()


def main():
    bindings = importlib.import_module("cga_lightning._lightning").BINDINGS
    source = "cga_lightning" if len(used) == 1 else bindings[used[-1]]
    decentralized, simulated, data_module = classes or public_classes(source)
    data_module = partial(data_module, partition="iid")
    reference = train(simulated(agents=2), 1, data_module)
    strategies = [s if s.startswith("cga_") else decentralized(start_method=s) for s in sys.argv[2].split(",")]
    for strategy in strategies:
        torch.testing.assert_close(train(strategy, 2, data_module), reference, atol=1e-6, rtol=0)
    print("trained", pl.__name__)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    main()
