"""One task of a job of SLURM: trains until a file says that it is enough, and notes where it has started from."""

import sys
import time
from datetime import timedelta
from pathlib import Path

import pytorch_lightning as pl

import cga_lightning as cga
from tests.toys import QUIET, Classifier, OwnData, one_class_each


class Paced(pl.Callback):
    """A step lasts some milliseconds, so that signals come inside of it, also while messages travel."""

    def __init__(self, job: Path) -> None:
        self.job = job

    def on_train_start(self, trainer, pl_module):
        (self.job / f"from{trainer.global_rank}").write_text(str(trainer.global_step))

    def on_after_backward(self, trainer, pl_module):
        time.sleep(0.005)

    def on_train_batch_end(self, trainer, pl_module, *_):
        (self.job / f"started{trainer.global_rank}").touch()
        trainer.should_stop = trainer.strategy.broadcast((self.job / "enough").exists())


if __name__ == "__main__":
    job = Path(sys.argv[1])
    strategy = cga.DecentralizedStrategy(timeout=timedelta(seconds=60))
    options = QUIET | {"max_epochs": -1, "default_root_dir": job, "callbacks": [Paced(job)]}
    pl.Trainer(strategy=strategy, devices=2, **options).fit(Classifier(), datamodule=OwnData(one_class_each(2)))
