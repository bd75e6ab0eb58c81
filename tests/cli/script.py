"""A training script as users write them."""

import sys

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from tests.cli.own import Blobs, Validated


def main() -> None:
    trainer = pl.Trainer(accelerator="cpu", max_epochs=500, accumulate_grad_batches=2, logger=False)
    if len(sys.argv) > 1:
        trainer.fit(
            Validated(width=int(sys.argv[1])), DataLoader(Blobs(), batch_size=8), DataLoader(Blobs(), batch_size=8)
        )
    print("the script went on")


if __name__ == "__main__":
    main()
