"""One agent of four: notes every call of torch.distributed in 20 steps, or gets SIGTERM; run by test_edges.

Arguments: what to do, a folder for what is noted.
"""

import collections
import functools
import inspect
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.distributed as dist

import cga_lightning as cga
from tests.toys import QUIET, Classifier, OwnData, one_class_each

WHAT, FOLDER = sys.argv[1], Path(sys.argv[2])
POINT_TO_POINT = {"isend": "dst", "irecv": "src"}
CALLS = [name for name in dist.distributed_c10d.__all__ if inspect.isfunction(getattr(dist, name, None))]
QUESTIONS = ("get_", "is_", "supports_")  # which send nothing


class Watch(pl.Callback):
    """Notes with whom and how this process talks, from the second batch to the end of the last."""

    def __init__(self):
        self.calls = collections.Counter()
        self.on = False
        for name in CALLS:
            if not name.startswith(QUESTIONS):
                setattr(dist, name, self.noted(name, getattr(dist, name)))

    def noted(self, name, call):
        @functools.wraps(call)
        def noting(*args, **kwargs):
            if self.on:
                self.calls[name, kwargs.get(POINT_TO_POINT.get(name), args[1] if name in POINT_TO_POINT else None)] += 1
            return call(*args, **kwargs)

        return noting

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.on = batch_idx < trainer.num_training_batches - 1

    def on_train_end(self, trainer, module):
        torch.save(dict(self.calls), FOLDER / f"{trainer.global_rank}.pt")


class End(pl.Callback):
    """Notes at which step SIGTERM has ended the run."""

    def on_exception(self, trainer, module, exception):
        if isinstance(exception, SystemExit):  # the main process, which has no agent, has another one
            (FOLDER / f"{trainer.global_rank}.end").write_text(str(trainer.global_step))


class Stopped(Classifier):
    """Some agents get SIGTERM in their sixth batch, at different moments."""

    def training_step(self, batch, batch_idx):
        time.sleep(0.01)
        if self.trainer.global_step == 5 and str(self.global_rank) in WHAT:
            time.sleep(0.02 * self.global_rank)
            os.kill(os.getpid(), signal.SIGTERM)
        return super().training_step(batch, batch_idx)


def main():
    strategy = cga.DecentralizedStrategy(start_method="fork", timeout=timedelta(seconds=60))
    watch = WHAT == "calls"
    options = QUIET | {"devices": 4, "max_epochs": 1, "callbacks": [Watch() if watch else End()]}
    data = OwnData(one_class_each(4, samples=4 * 22 if watch else 4000))
    pl.Trainer(strategy=strategy, **options).fit(Classifier() if watch else Stopped(), datamodule=data)


if __name__ == "__main__":
    main()
