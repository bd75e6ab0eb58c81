"""Two nodes, each with a disk of its own at the same path; run by test_disks. Arguments: a folder, what to do.

Needs to be root, since every node is a process with a mount namespace of its own.
"""

import ctypes
import os
import sys
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

import cga_lightning as cga
from tests.lightning.test_launching import free_port
from tests.toys import QUIET, Classifier, OwnData, one_class_each

NODES, NEWNS, PRIVATE, BIND = 2, 0x20000, 0x44000, 0x1000
FOLDER, WHAT = Path(sys.argv[1]), sys.argv[2]


def own_disk(node):
    libc = ctypes.CDLL(None, use_errno=True)
    disk, shared = FOLDER / f"disk{node}", FOLDER / "checkpoints"
    disk.mkdir(exist_ok=True)
    arguments = [(b"none", b"/", None, PRIVATE, None), (bytes(disk), bytes(shared), None, BIND, None)]
    if libc.unshare(NEWNS) or any(libc.mount(*each) for each in arguments):
        raise OSError(ctypes.get_errno(), "a mount namespace")


class Weights(pl.Callback):
    def on_train_end(self, trainer, module):
        (weights,) = trainer.strategy.agent_state_dicts()
        total = sum(value.double().sum() for value in weights.values())
        (FOLDER / f"{WHAT}{trainer.global_rank}").write_text(f"{trainer.global_step} {float(total)!r}")


def train(node):
    own_disk(node)
    epochs = 2 if WHAT == "half" else 4
    save = ModelCheckpoint(dirpath=FOLDER / "checkpoints", save_last=True, save_top_k=1, filename="{epoch}")
    callbacks = [Weights()] if WHAT == "whole" else [Weights(), save]
    options = QUIET | {"max_epochs": epochs, "callbacks": callbacks, "enable_checkpointing": WHAT != "whole"}
    strategy = cga.DecentralizedStrategy(timeout=timedelta(seconds=60))
    trainer = pl.Trainer(strategy=strategy, devices=1, num_nodes=NODES, **options)
    trainer.fit_loop.max_epochs = 4 if WHAT == "resumed" else epochs
    path = "last" if WHAT == "resumed" else None
    trainer.fit(Classifier(), datamodule=OwnData(one_class_each(NODES)), ckpt_path=path, weights_only=False)


def main():
    warnings.simplefilter("ignore")
    (FOLDER / "checkpoints").mkdir(exist_ok=True)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    nodes = []
    for node in range(NODES):
        os.environ["NODE_RANK"] = str(node)
        nodes.append(os.fork())
        if not nodes[-1]:
            code = 1
            try:
                train(node)
                code = 0
            except BaseException:
                traceback.print_exc()
            os._exit(code)
    return max(os.waitstatus_to_exitcode(os.waitpid(node, 0)[1]) for node in nodes)


if __name__ == "__main__":
    sys.exit(main())
