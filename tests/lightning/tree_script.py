"""Trains under Lightning trees; run by test_lightning_trees in a process of its own, since the import order matters.

Arguments: the modules to import, in this order, and strategies: names, or start methods of an object. "alone" in place
of a module forbids to import `lightning`. Every tree among the modules trains.
"""

import importlib
import os
import sys
import warnings

import torch
from torch.utils.data import TensorDataset

TREES = ("pytorch_lightning", "lightning.pytorch")
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Line:
    """A LightningModule, if it is one of some tree too."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return (self.layer(x).squeeze(1) - y).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Alone:
    """Finds no `lightning`."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "lightning":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def samples():
    x, y = torch.randn(12, 2, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 2
    return TensorDataset(x, y.float())


def trained(tree, module, strategy, devices=2):
    data = sys.modules["cga_lightning"].PartitionedDataModule(samples(), partition="iid", batch_size=2)
    trainer = tree.Trainer(devices=devices, strategy=strategy, max_steps=3, max_epochs=-1, **QUIET)
    assert isinstance(trainer.strategy, tree.strategies.Strategy)
    trainer.fit(module, data)
    return module.layer.weight.detach()


def main(trees, modules, strategies):
    import cga_lightning as cga

    reference = trained(trees[0], modules[0](), cga.SimulatedStrategy(2), devices=1)
    for tree, module in zip(trees, modules, strict=True):
        for name in strategies:
            strategy = name if name.startswith("cga_") else cga.DecentralizedStrategy(start_method=name)
            found = trained(tree, module(), strategy)
            torch.testing.assert_close(found, reference, atol=1e-6, rtol=0)
            if os.environ.get("LOCAL_RANK", "0") == "0":
                print("trained", tree.__name__, name)


if __name__ in ("__main__", "__mp_main__"):
    steps = sys.argv[1].split(",")
    warnings.simplefilter("ignore")
    for step in steps:
        sys.meta_path.insert(0, Alone()) if step == "alone" else importlib.import_module(step)
    trees = [sys.modules[tree] for tree in TREES if tree in steps]
    # By name in this module, as a spawned process looks for them.
    Line0, Line1 = (type(f"Line{i}", (Line, tree.LightningModule), {}) for i, tree in enumerate((trees * 2)[:2]))

if __name__ == "__main__":
    torch.set_num_threads(1)
    main(trees, [Line0, Line1][: len(trees)], sys.argv[2].split(","))
