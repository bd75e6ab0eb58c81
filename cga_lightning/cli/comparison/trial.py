"""One run of a comparison: agents simulated in this process, tested now and then."""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from cga_lightning import partition
from cga_lightning.algorithms import ALGORITHMS, Algorithm
from cga_lightning.cli.comparison.specs import Spec, built, function
from cga_lightning.cli.comparison.task import Task, accuracy, module_of
from cga_lightning.lightning import PartitionedDataModule, SimulatedStrategy
from cga_lightning.topology import TOPOLOGIES, Topology

SETTING = ("topology", "agents", "partition")
GRID = ("algorithm", "optimizer", *SETTING, "lr", "seed")
FIXED = ("data", "model", "batch_size", "steps", "evaluations", "last", "validation", "test_samples")
RESULTS = (
    *("validation_accuracy", "mean", "worst", "best", "gossip", "consensus"),
    *("distance", "tested", "bytes", "seconds", "curve"),
)

Run = dict[str, Any]
"""One row: the settings of `GRID` and `FIXED`, and the `RESULTS`.

These are accuracies, averaged over the last evaluations: of the agents' own models on validation data, on test data
their mean, the worst and the best, their mean after one more round of gossip, and that of the consensus; then, at the
end, the distance of the agents from the consensus; how many samples they were tested on; bytes sent per agent; wall
time; and the mean test accuracy of the agents' own models at every evaluation.
"""

algorithm_of: Callable[[Spec], Algorithm] = partial(
    built, "algorithm", base=Algorithm, known=ALGORITHMS, home="cga_lightning"
)
topology_of: Callable[[Spec], Topology] = partial(
    built, "topology", base=Topology, known=TOPOLOGIES, home="cga_lightning"
)
partition_of: Callable[[Spec], Callable[..., Any]] = partial(
    function, "partition", known=partition.PARTITIONS, home="cga_lightning.partition"
)


class Evaluation(pl.Callback):
    """Tests every agent's own model at evenly spaced steps; in the last of them also what could be made of these.

    Args:
        task: has the data to test on.
        every: steps between two evaluations.
        first_full: the step of the first of the last evaluations.
        tick: called at every step.
    """

    def __init__(self, task: Task, every: int, first_full: int, tick: Callable[[], None]) -> None:
        self.task, self.every, self.first_full, self.tick = task, every, first_full, tick
        self.curve: list[float] = []
        self.last: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Evaluate if it is time to."""
        self.tick()
        if trainer.global_step % self.every:
            return
        strategy: Any = trainer.strategy
        states = strategy.agent_state_dicts()
        tested = partial(accuracy, pl_module)
        own = tested(states, self.task.test)
        self.curve.append(float(own.mean()))
        if trainer.global_step >= self.first_full:
            self.last.append(
                {
                    "validation_accuracy": float(tested(states, self.task.validation).mean()),
                    "mean": float(own.mean()),
                    "worst": float(own.min()),
                    "best": float(own.max()),
                    "gossip": float(tested(after_gossip(states, strategy.topology), self.task.test).mean()),
                    "consensus": float(tested([mean_of(states)], self.task.test)),
                }
            )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The agents still differ here."""
        strategy: Any = trainer.strategy
        self.distance = float(strategy.consensus_distance())


def train(run: Run, task: Task, tick: Callable[[], None] = lambda: None) -> Run:
    """Make one run and return its row.

    Args:
        run: its settings, those of `GRID` as specs.
        task: its data.
        tick: called after every step.
    """
    start = time.perf_counter()
    pl.seed_everything(run["seed"], verbose=False)
    module = module_for(run, task)
    every = run["steps"] // run["evaluations"]
    evaluation = Evaluation(task, every, run["steps"] - every * (run["last"] - 1), tick)
    strategy = SimulatedStrategy(run["agents"], algorithm_of(run["algorithm"]), topology_of(run["topology"]))
    split = {"partition": partition_of(run["partition"]), "batch_size": run["batch_size"], "seed": run["seed"]}
    trainer = pl.Trainer(strategy=strategy, max_steps=run["steps"], max_epochs=-1, callbacks=evaluation, **QUIET)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*(does not have many workers|LeafSpec)")  # the data is in memory
        trainer.fit(module, datamodule=PartitionedDataModule(task.train, **split))
    return run | {
        **{name: float(np.mean([values[name] for values in evaluation.last])) for name in evaluation.last[0]},
        "distance": evaluation.distance,
        "tested": sum(len(classes) for _, classes in task.test),
        "bytes": sum(strategy.traffic.values()) // run["agents"],
        "seconds": round(time.perf_counter() - start, 1),
        "curve": " ".join(f"{value:.4f}" for value in evaluation.curve),
    }


def module_for(run: Run, task: Task) -> pl.LightningModule:
    """The module of a run, with its optimizer.

    Raises:
        ValueError: a spec leads nowhere.
        TypeError: a class does not take these arguments.
    """
    return module_of(run["model"], run["optimizer"], run["lr"], task.train)


QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def quietly() -> None:
    """Of Lightning's messages only errors, in this process; a comparison starts many Trainers."""
    for library in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.ERROR)


def refuse(run: Run) -> None:
    """Build what a run needs but its data, so that it fails before anything is trained.

    Raises:
        ValueError: a spec leads nowhere, or the algorithm cannot run on that graph.
        TypeError: a class does not take these arguments.
    """
    algorithm_of(run["algorithm"]).check(topology_of(run["topology"]).bind(run["agents"]))
    partition_of(run["partition"])


def mean_of(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of the agents' tensors; those that are no floats, such as counters, from the first agent."""
    return _averaged(states, np.full(len(states), 1 / len(states)), 0)


def after_gossip(states: Sequence[Mapping[str, Tensor]], topology: Topology) -> list[dict[str, Tensor]]:
    """The models after one more round of mixing, without a gradient: x^j <- sum_l W_jl x^l / sum_l W_jl.

    The weights of a row sum to 1 but on directed graphs whose agents have more edges in than out.
    """
    weights = topology.mixing_matrix()
    weights = weights / weights.sum(axis=1, keepdims=True)
    return [_averaged(states, row, rank) for rank, row in enumerate(weights)]


def _averaged(states: Sequence[Mapping[str, Tensor]], weights: Any, own: int) -> dict[str, Tensor]:
    def mean(name: str) -> Tensor:
        if not states[own][name].is_floating_point():
            return states[own][name]
        parts = (state[name].double() * float(weight) for state, weight in zip(states, weights, strict=True))
        return torch.stack(list(parts)).sum(0).to(states[own][name].dtype)

    return {name: mean(name) for name in states[own]}


def text(value: Any) -> str:
    """A setting as it is written into a table of runs: specs in JSON, so that they can be told apart and read back."""
    return json.dumps(value, sort_keys=True) if isinstance(value, Mapping) else str(value)
