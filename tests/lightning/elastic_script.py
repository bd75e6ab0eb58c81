"""One agent of torchrun, which starts it again after a failure; run by test_elastic. Argument: a folder."""

import os
import signal
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

import cga_lightning as cga
from tests.toys import QUIET, Classifier, OwnData, one_class_each

FOLDER = Path(sys.argv[1])


class Dies(Classifier):
    """Agent 1 is killed in its tenth step, of four in an epoch, in every attempt but the last."""

    def training_step(self, batch, batch_idx):
        attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        if self.global_rank == 1 and attempt < 2 and self.global_step == 9:
            (FOLDER / f"killed{attempt}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(batch, batch_idx)


def main():
    warnings.simplefilter("ignore")
    save = ModelCheckpoint(dirpath=FOLDER, save_last=True, save_top_k=0)
    strategy = cga.DecentralizedStrategy(timeout=timedelta(seconds=30))
    options = QUIET | {"max_epochs": 4, "callbacks": [save], "enable_checkpointing": True}
    trainer = pl.Trainer(strategy=strategy, devices=2, **options)
    data = OwnData(one_class_each(2))
    trainer.fit(Dies(), datamodule=data, ckpt_path="last", weights_only=False)
    (FOLDER / f"done{trainer.global_rank}").write_text(str(trainer.global_step))


if __name__ == "__main__":
    main()
