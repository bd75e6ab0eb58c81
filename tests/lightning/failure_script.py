"""Agent 1 of 3 fails in its third step; run by test_failures.

Arguments: start method, event, timeout in seconds, a folder for the checkpoint of an exception.
"""

import os
import signal
import sys
import time
import warnings
from datetime import timedelta

import pytorch_lightning as pl
from pytorch_lightning.callbacks import OnExceptionCheckpoint

import cga_lightning as cga
from cga_lightning.core import communication
from tests.toys import QUIET, Classifier, OwnData, one_class_each

START_METHOD, EVENT, TIMEOUT, FOLDER = sys.argv[1:]
communication.PATIENCE = 1.0
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
MAIN = int(os.environ.setdefault("MAIN", str(os.getpid())))

EVENTS = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "raising": lambda: (_ for _ in ()).throw(KeyError("the data of agent 1 is gone")),
    "stalled": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "late": lambda: time.sleep(3),
    "interrupted": lambda: os.killpg(os.getpgrp(), signal.SIGINT),  # as Ctrl+C does
    "interrupted alone": lambda: os.kill(MAIN, signal.SIGINT),
}


class Fails(Classifier):
    fails = True

    def training_step(self, batch, batch_idx):
        if self.fails and self.global_rank == 1 and self.global_step == 2:
            type(self).fails = False
            print(f"failing {time.monotonic()}", file=sys.stderr, flush=True)
            EVENTS[EVENT]()
        return super().training_step(batch, batch_idx)


def main():
    warnings.simplefilter("ignore")
    strategy = cga.DecentralizedStrategy(start_method=START_METHOD, timeout=timedelta(seconds=float(TIMEOUT)))
    options = {"devices": 3, "max_epochs": 1000 if EVENT.startswith("interrupted") else 1}
    if EVENT.startswith("interrupted"):
        options |= {"callbacks": [OnExceptionCheckpoint(FOLDER)], "enable_checkpointing": True}
    trainer = pl.Trainer(strategy=strategy, **QUIET | options)
    trainer.fit(Fails(), datamodule=OwnData(one_class_each(3)))
    print("finished", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
