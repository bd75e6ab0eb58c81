"""Several loops in one script, under the launcher that the environment or the arguments choose; run by test_launching.

Arguments: the Trainer's `devices` and `num_nodes`, and a file; each process writes what it ends with beside it.
"""

import sys
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

import cga_lightning  # noqa: F401  registers the names
from tests.toys import QUIET, Classifier, OwnData, one_class_each

AGENTS = 2


class Module(Classifier):
    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch, batch_idx):
        return self.net(batch[0])


class Data(OwnData):
    def val_dataloader(self):
        return DataLoader(self.datasets[1], batch_size=4)

    test_dataloader = predict_dataloader = val_dataloader


def loops(strategy, **options):
    """Validate, train, test, predict, and train again, in one Trainer."""
    torch.manual_seed(0)
    trainer, module, data = pl.Trainer(strategy=strategy, **QUIET | options), Module(), Data(one_class_each(AGENTS))
    (before,) = trainer.validate(module, datamodule=data, verbose=False)
    trainer.fit_loop.max_epochs = 1
    trainer.fit(module, datamodule=data)
    (tested,) = trainer.test(module, datamodule=data, verbose=False)
    predictions = trainer.predict(module, datamodule=data)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, datamodule=data)
    (after,) = trainer.validate(module, datamodule=data, verbose=False)
    return {
        "launched by": type(getattr(trainer.strategy, "cluster_environment", None)).__name__,
        "losses": [before["val_loss"], tested["val_loss"], after["val_loss"]],
        "predictions": torch.cat(predictions),
        "steps": trainer.global_step,
        "weights": module.net[0].weight.detach(),
    }, trainer.global_rank


def main():
    warnings.simplefilter("ignore")
    devices, num_nodes, path = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    found, rank = loops("cga", devices=devices, num_nodes=num_nodes)
    torch.save(found, path.with_name(f"{path.name}{rank}"))


if __name__ == "__main__":
    main()
