"""Forked agents work although the main process has computed with several threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import torch
torch.set_num_threads(2)
torch.randn(4_000_000).exp().sum()  # starts the pool of threads that a forked process does not have
import pytorch_lightning as pl
import cga_lightning
from tests.toys import QUIET, Classifier, OwnData, one_class_each

class Wide(Classifier):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(6, 4000), torch.nn.Linear(4000, 1000), torch.nn.Linear(1000, 4))

trainer = pl.Trainer(devices=2, strategy="cga_fork", max_steps=2, **QUIET)
trainer.fit(Wide(), datamodule=OwnData(one_class_each(2, 64), batch_size=32))
print("finished")
"""


def test_forking_after_the_use_of_threads_does_not_hang() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONWARNINGS": "ignore"}
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", SCRIPT]
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)
    assert run.stdout.strip().endswith("finished"), run.stderr
