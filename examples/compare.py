"""Compare algorithms on one task: every combination of the lists given is one run, simulated in this process.

    python examples/compare.py --algorithms cga compcga dpsgd --seeds 0 1 2
    python examples/compare.py --data mnist --data-root DIR --agents 5 10 --topologies ring complete --partitions iid

Writes runs.csv, one row per run, into the output folder; runs that are there are not repeated, so an interrupted
comparison goes on where it stopped. In the end it makes table.md and curves.png of all its runs.

An algorithm is a name, or an expression such as "QuasiGlobalMomentum(CGA(margin=0.0))". With --best the table shows
each one with the learning rate of --lrs that does best over the seeds, in each setting.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from data import DATASETS, Images, load
from figures import draw, grouped, markdown
from models import MODELS, Classifier
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.func import functional_call

import cga_lightning
from cga_lightning import Algorithm, PartitionedDataModule, QuasiGlobalMomentum, SimulatedStrategy
from cga_lightning.algorithms import ALGORITHMS, from_name

SETTING = ("algorithm", "topology", "agents", "partition")
GRID = (*SETTING, "lr", "seed")
FIXED = ("data", "model", "batch_size", "optimizer", "momentum", "steps", "evaluations", "last", "test_samples")
RESULTS = ("mean", "worst", "best", "consensus", "distance", "bytes", "seconds", "curve")

Run = dict[str, Any]
"""One row: the settings of `GRID` and `FIXED`, and the `RESULTS`: the mean, worst and best test accuracy of the agents,
averaged over the last evaluations; the accuracy of the consensus and the distance from it in the end; bytes sent per
agent; wall time; and the mean accuracy at every evaluation."""


class Evaluation(pl.Callback):
    """Tests every agent's own model at evenly spaced steps."""

    def __init__(self, test: Images, every: int, progress: Progress) -> None:
        self.test, self.every, self.progress = test, every, progress
        self.accuracies: list[Tensor] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Evaluate if it is time to."""
        self.progress.advance(self.progress.task_ids[0])
        if trainer.global_step % self.every == 0:
            states = trainer.strategy.agent_state_dicts()
            self.accuracies.append(torch.stack([accuracy(pl_module, state, self.test) for state in states]))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The agents still differ here."""
        self.distance = float(trainer.strategy.consensus_distance())


@torch.no_grad()
def accuracy(module: pl.LightningModule, state: dict[str, Tensor], test: Images) -> Tensor:
    """Of the module with the tensors of `state`, without dropout."""
    training = module.training
    module.eval()
    chunks = zip(test.images.split(500), test.labels.split(500), strict=True)
    hits = [functional_call(module, state, images).argmax(1).eq(labels) for images, labels in chunks]
    module.train(training)
    return torch.cat(hits).double().mean()


def train(run: Run, images: tuple[Images, Images], progress: Progress) -> Run:
    """Make one run and return its row."""
    start, (training, test) = time.perf_counter(), images
    pl.seed_everything(run["seed"], verbose=False)
    algorithm = algorithm_of(run["algorithm"])
    momentum = 0.0 if isinstance(algorithm, QuasiGlobalMomentum) else run["momentum"]  # it has its own
    module = Classifier(MODELS[run["model"]](*training.images.shape[1:3]), run["lr"], momentum, run["optimizer"])
    evaluation = Evaluation(test, run["steps"] // run["evaluations"], progress)
    strategy = SimulatedStrategy(run["agents"], algorithm, run["topology"])
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, strategy=strategy, max_steps=run["steps"], callbacks=evaluation, **quiet
    )
    split = {"partition": run["partition"], "batch_size": run["batch_size"], "seed": run["seed"]}
    trainer.fit(module, datamodule=PartitionedDataModule(training.dataset(), **split))
    accuracies = torch.stack(evaluation.accuracies)
    last = accuracies[-run["last"] :]
    results = (
        *(float(values.mean()) for values in (last, last.amin(1), last.amax(1))),
        float(accuracy(module, module.state_dict(), test)),
        evaluation.distance,
        sum(strategy.traffic.values()) // run["agents"],
        round(time.perf_counter() - start, 1),
        " ".join(f"{value:.4f}" for value in accuracies.mean(1).tolist()),
    )
    return run | dict(zip(RESULTS, results, strict=True))


def algorithm_of(text: str) -> Algorithm:
    """By name, or from an expression in the public names of the package."""
    if text in ALGORITHMS:
        return from_name(text)
    return eval(text, {name: getattr(cga_lightning, name) for name in cga_lightning.__all__})


def compare(args: argparse.Namespace) -> None:
    """Make all runs that are not in the output folder yet, then show those asked for."""
    args.output.mkdir(parents=True, exist_ok=True)
    training, test = load(args.data, args.data_root, args.download)
    shown = Images(*(part[: args.test_samples] for part in test))
    lists = [getattr(args, name) for name in ("algorithms", "topologies", "agents", "partitions", "lrs", "seeds")]
    fixed = {name: getattr(args, name) for name in FIXED} | {"test_samples": len(shown.labels)}
    wanted = [fixed | dict(zip(GRID, values, strict=True)) for values in itertools.product(*lists)]
    rows = make_runs(args.output / "runs.csv", (training, shown), wanted)
    if args.best:
        rows, note = with_best_rates(rows), f"Learning rates: the best of {', '.join(map(str, args.lrs))}."
    table = markdown(rows, note if args.best else "")
    (args.output / "table.md").write_text(table)
    draw(rows, args.output / "curves.png")
    print(table)


def make_runs(path: Path, images: tuple[Images, Images], wanted: list[Run]) -> list[Run]:
    """The rows of all wanted runs; those that are not in the file yet are made now and added to it."""
    done = {key(run): run for run in read(path)}
    missing = {key(run): run for run in wanted if key(run) not in done}
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("steps, left"), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.description}"), speed_estimate_period=600) as progress:
        task = progress.add_task("", total=sum(run["steps"] for run in missing.values()))
        for name, run in missing.items():
            progress.update(task, description=f"{run['algorithm']}, {run['topology']}, {run['agents']} agents")
            done[name] = append(path, train(run, images, progress))
    return [done[key(run)] for run in wanted]


def with_best_rates(rows: list[Run]) -> list[Run]:
    """Those with the learning rate that is most accurate, over all seeds, for their algorithm and setting."""
    best: list[Run] = []
    for group in grouped(rows, SETTING).values():
        best += max(grouped(group, ("lr",)).values(), key=lambda runs: sum(float(run["mean"]) for run in runs))
    return best


def key(run: Run) -> tuple[str, ...]:
    """What tells runs apart."""
    return tuple(str(run[name]) for name in (*FIXED, *GRID))


def read(path: Path) -> list[Run]:
    """The rows written so far; files from before there was a choice of optimizers have none for it."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [{"optimizer": "sgd", **row} for row in csv.DictReader(file)]


def append(path: Path, run: Run) -> Run:
    """Add one row, and return it as it is read back."""
    longer = path.with_suffix(".new")
    with longer.open("w", newline="") as file:
        writer = csv.DictWriter(file, (*GRID, *FIXED, *RESULTS))
        writer.writeheader()
        writer.writerows([*read(path), run])
    longer.replace(path)
    return {name: str(value) for name, value in run.items()}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--algorithms", nargs="+", default=["cga", "compcga", "dpsgd", "sgp", "swarmsgd"])
    add("--topologies", nargs="+", default=["ring"])
    add("--agents", nargs="+", type=int, default=[5])
    add("--partitions", nargs="+", default=["by_label"])
    add("--lrs", nargs="+", type=float, default=[0.01], help="learning rates")
    add("--seeds", nargs="+", type=int, default=[0])
    add("--best", action="store_true", help="show each algorithm only with its best learning rate")
    add("--data", default="digits", choices=DATASETS)
    add("--data-root", metavar="DIR", help="the folder of MNIST, FashionMNIST or CIFAR-10")
    add("--download", action="store_true", help="fetch them into --data-root if they are not there")
    add("--model", default="cnn", choices=MODELS)
    add("--batch-size", type=int, default=32)
    add("--optimizer", default="sgd", choices=("sgd", "adamw"))
    add("--momentum", type=float, default=0.9, help="of SGD; 0 under QuasiGlobalMomentum, which has its own")
    add("--steps", type=int, default=200)
    add("--evaluations", type=int, default=20, help="per run")
    add("--last", type=int, default=5, help="accuracies are averaged over that many last evaluations")
    add("--test-samples", type=int, default=2000, help="the first so many of the test images")
    add("--output", type=Path, default=Path("comparison"), metavar="DIR")
    args = parser.parse_args()
    if args.data != "digits" and not args.data_root:
        parser.error(f"--data {args.data} needs --data-root DIR, the folder where it lies or is to be downloaded to.")
    if args.steps % args.evaluations:
        parser.error(f"--steps {args.steps} must be a multiple of --evaluations {args.evaluations}.")
    if not 1 <= args.last <= args.evaluations:
        parser.error(f"--last {args.last} must be at least 1 and at most --evaluations {args.evaluations}.")
    return args


def main() -> None:
    """Run quietly."""
    for library in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec)")  # the data is in memory
    try:
        compare(parse())
    except FileNotFoundError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
