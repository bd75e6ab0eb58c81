"""Agents that hold different classes learn one model together: CGA beside DPSGD, for the same number of steps.

    python examples/quickstart.py                       all agents simulated in this process
    python examples/quickstart.py --strategy cga_fork   one process per agent

Both methods get the same model, data, batches, optimizer and seed. Prints a table and draws the curves.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.strategies import StrategyRegistry
from report import ProgressBar, SaveConsensus, TestAccuracy, draw, print_table, read_record
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cga_lightning import ConsensusMonitor, DecentralizedStrategy, PartitionedDataModule, RunRecord, SimulatedStrategy
from cga_lightning.cli.comparison.images import Images, digits, mnist
from cga_lightning.cli.comparison.trial import quietly
from cga_lightning.cli.report import write
from cga_lightning.topology import TOPOLOGIES

BASELINE = "dpsgd"
REGISTERED = {name: StrategyRegistry[name]["init_params"] for name in StrategyRegistry}
STRATEGIES = {name: options for name, options in REGISTERED.items() if options.get("algorithm", BASELINE) != BASELINE}

quietly()
warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec|logging interval)")  # the data is in memory


class Classifier(pl.LightningModule):
    """An ordinary LightningModule: nothing in it knows of agents."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(32 * (side // 4) ** 2, 10)),
        )

    def forward(self, images: Tensor) -> Tensor:
        """The scores of the ten classes `[n, 10]`."""
        return self.net(images)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        images, labels = batch
        loss = cross_entropy(self(images), labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def fit(algorithm: str, args: argparse.Namespace, data: PartitionedDataModule, test: Images, folder: Path) -> bool:
    """Train the agents by one method, with logs in `folder`; True in the process that shows the results."""
    pl.seed_everything(args.seed, verbose=False)
    if args.strategy == "simulated":
        devices, strategy = 1, SimulatedStrategy(args.agents, algorithm, args.topology)
    else:
        start_method = STRATEGIES[args.strategy]["start_method"]
        devices, strategy = args.agents, DecentralizedStrategy(algorithm, args.topology, start_method=start_method)
    every, measure = max(1, args.steps // 20), TestAccuracy(test)
    callbacks = [
        ProgressBar(algorithm.upper()),
        ConsensusMonitor(every_n_steps=every),
        RunRecord(measure, every_n_steps=every),
        SaveConsensus(measure, folder / "consensus.json"),
    ]
    logger = CSVLogger(folder.parent, name=folder.name, version="")
    quiet = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    options = {"accelerator": "cpu", "max_steps": args.steps, "log_every_n_steps": every, "logger": logger, **quiet}
    trainer = pl.Trainer(devices=devices, strategy=strategy, callbacks=callbacks, **options)
    trainer.fit(Classifier(side=test.images.shape[-1]), datamodule=data)
    return trainer.is_global_zero


def compare(args: argparse.Namespace, train: Images, test: Images) -> None:
    """Train by the baseline and by the chosen method, then show both."""
    chosen = STRATEGIES.get(args.strategy, {"algorithm": "cga"})["algorithm"]
    data = PartitionedDataModule(train.dataset(), partition="by_label", batch_size=32, seed=args.seed)
    with tempfile.TemporaryDirectory() as folder:
        runs = {name.upper(): Path(folder, name.upper()) for name in (BASELINE, chosen)}
        if not all([fit(name.lower(), args, data, test, run) for name, run in runs.items()]):
            return
        records = {name: read_record(run) for name, run in runs.items()}
        classes = [sorted(set(train.labels[part].tolist())) for part in data.parts(args.agents)]
        print_table(records, classes)
        title = f"{args.agents} agents ({args.topology}), each trains on {max(map(len, classes))} of 10 classes"
        draw(records, title, args.picture)
        page = args.picture.with_suffix(".html")
        write(list(runs.values()), page, title)
    print(f"{args.picture} has the curves, {page} all that was logged: open it in a browser.")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    undirected = [name for name, topology in TOPOLOGIES.items() if not topology.directed]
    add = parser.add_argument
    processes = f"simulated (the default), or one process per agent: {', '.join(STRATEGIES)}"
    add("--strategy", metavar="NAME", choices=["simulated", *STRATEGIES], default="simulated", help=processes)
    add("--agents", metavar="N", type=int, default=5, help="number of agents (default: %(default)s)")
    add(
        "--topology",
        metavar="NAME",
        choices=undirected,
        default="ring",
        help=f"one of {', '.join(undirected)} (default: %(default)s)",
    )
    add("--steps", metavar="N", type=int, default=200, help="optimizer steps of each method (default: %(default)s)")
    add(
        "--seed",
        metavar="N",
        type=int,
        default=0,
        help="of the model, the partition and the batches (default: %(default)s)",
    )
    add("--data-root", metavar="DIR", help="train on MNIST in this folder instead of scikit-learn's digits")
    add("--download", action="store_true", help="fetch MNIST into --data-root if it is not there")
    add(
        "--picture",
        metavar="FILE",
        type=Path,
        default="quickstart.png",
        help="where to save the curves (default: %(default)s)",
    )
    args = parser.parse_args()
    if args.agents < 2 or args.steps < 1:
        parser.error(f"needs at least 2 agents and 1 step, got --agents {args.agents} --steps {args.steps}.")
    if args.download and not args.data_root:
        parser.error("--download needs --data-root DIR, the folder to put MNIST into.")
    return args


if __name__ == "__main__":
    torch.set_num_threads(1)  # the model is tiny, and a process that has run several threads cannot be forked
    arguments = parse()
    try:
        images = mnist(arguments.data_root, arguments.download) if arguments.data_root else digits()
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from None
    compare(arguments, *images)
