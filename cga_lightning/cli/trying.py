"""A module and its data, tried for two steps with simulated agents."""

from __future__ import annotations

import runpy
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytorch_lightning as pl
from torch import Tensor

from cga_lightning.cli.comparison.trial import QUIET, quietly
from cga_lightning.lightning import PartitionedDataModule, SimulatedStrategy
from cga_lightning.lightning.trees import TREES, tree_of

STEPS = 2
OPTIONS = ("precision", "accumulate_grad_batches", "gradient_clip_val")
"""What the Trainer of a script and the one that tries have in common."""


class Subject(NamedTuple):
    """What is tried.

    Attributes:
        module: of the user.
        data: a data module, loaders, or None if the module has them.
        options: arguments of the Trainer.
        validation: loaders, if they do not come with the data.
    """

    module: Any
    data: Any
    options: Mapping[str, Any]
    validation: Any = None


@dataclass
class Tried:
    """What was found.

    Attributes:
        works: what was done, in words.
        refused: what was not possible, and why.
        left_out: what could not be reached.
        memory: bytes that an agent keeps, by what they are for.
        sent: bytes that an agent sends per step, by exchange.
    """

    works: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)
    sent: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """Inside it is done; how that ended is noted. After something was refused it is left out."""
        try:
            yield
        except Exception as error:
            self.refused[what] = f"{error} ({type(error).__name__})"
        else:
            self.works.append(what)


class _Stop(BaseException):
    """The script has come to its call of fit; no `except Exception` of it holds this up."""


def subject_of_script(path: Path, arguments: Sequence[str]) -> Subject:
    """The module and the data that a script gives to its first `Trainer.fit`, which is not run.

    Raises:
        FileNotFoundError: there is no such script.
        ValueError: it has ended without a call of fit.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no script {path}.")
    taken: list[Subject] = []

    def fit(trainer: Any, model: Any, train_dataloaders: Any = None, val_dataloaders: Any = None, **more: Any) -> None:
        data = more.get("datamodule") if train_dataloaders is None else train_dataloaders
        data = train_dataloaders if data is None else data
        taken.append(Subject(model, data, {name: getattr(trainer, name) for name in OPTIONS}, val_dataloaders))
        raise _Stop

    sys.path.insert(0, str(path.resolve().parent))
    with patch.object(sys, "argv", [str(path), *arguments]), _in_every_tree("fit", fit):
        try:
            runpy.run_path(str(path), run_name="__main__")
        except _Stop:
            return taken[0]
    raise ValueError(f"{path} has ended without a call of Trainer.fit.")


@contextmanager
def _in_every_tree(name: str, method: Any) -> Iterator[None]:
    """Replace a method of the Trainer of each Lightning package that is there."""
    found = [sys.modules[tree].Trainer for tree in TREES if tree in sys.modules]
    patches = [patch.object(trainer, name, method) for trainer in dict.fromkeys(found)]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()


def attempt(subject: Subject, algorithm: str, topology: str, agents: int) -> Tried:
    """Train two steps, validate, save a checkpoint and go on from it; note what an agent keeps and sends."""
    tried = Tried()
    quietly()
    with tried.trying(f"{algorithm} on the graph {topology}, {agents} agents"):
        strategy = SimulatedStrategy(agents, algorithm, topology)
    if not tried.refused:
        with tempfile.TemporaryDirectory() as folder:
            _try(tried, subject, strategy, Path(folder))
    return tried


def _try(tried: Tried, subject: Subject, strategy: SimulatedStrategy, folder: Path) -> None:
    look = Look(folder / "x.ckpt")
    with tried.trying(f"training {type(subject.module).__name__}"):
        subject = _per_agent(subject, strategy.agents)
        _fit(subject, strategy, folder, STEPS, look)
        tried.memory = look.memory
        tried.sent = {name: count / STEPS / strategy.agents for name, count in strategy.traffic.items()}
    if tried.refused:
        tried.left_out += ["validation", "checkpoints"]
        return
    (tried.works if look.validated else tried.left_out).append("validation with the consensus, on one batch")
    with tried.trying("a checkpoint of the consensus and of every agent, and training that goes on from it"):
        again = SimulatedStrategy(strategy.agents, strategy.algorithm, strategy.topology)
        _fit(subject, again, folder, STEPS + 1, ckpt_path=str(look.checkpoint))


def _fit(subject: Subject, strategy: Any, folder: Path, steps: int, *callbacks: pl.Callback, **more: Any) -> Any:
    """Train with the Trainer of the Lightning package that the module is from."""
    trainer = import_module(tree_of(subject.module) or TREES[0]).Trainer(
        strategy=strategy,
        max_steps=steps,
        limit_val_batches=1,
        val_check_interval=1,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=list(callbacks),
        **QUIET,
        **subject.options,
    )
    if hasattr(subject.data, "prepare_data"):
        more["datamodule"] = subject.data
    else:
        more |= {"train_dataloaders": subject.data, "val_dataloaders": subject.validation}
    trainer.fit(subject.module, **more)
    return trainer


def _per_agent(subject: Subject, agents: int) -> Subject:
    """Let data that know of no agents give every agent a loader of its own, as its process would ask for one."""
    data = subject.module if subject.data is None else subject.data
    if isinstance(data, PartitionedDataModule):
        return subject
    if hasattr(data, "train_dataloader"):
        data.train_dataloader = partial(_one_each, data.train_dataloader, agents)
        return subject
    return Subject(subject.module, _one_each(lambda: data, agents), subject.options, subject.validation)


def _one_each(loader: Callable[[], Any], agents: int) -> Any:
    first = loader()
    if isinstance(first, list | tuple) and len(first) == agents:
        return first
    return [first, *(loader() for _ in range(agents - 1))]


class Look(pl.Callback):
    """Looks at what the first agent keeps after a step, in bytes, and saves a checkpoint after the last one."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.memory: dict[str, int] = {}
        self.validated = False

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """What lives from step to step, and what a step needs beside it."""
        strategy: Any = trainer.strategy
        if trainer.global_step == 0:  # gradients are being accumulated
            return
        state = strategy.agent_state_dicts()[0]
        gradients = sum(parameter.nbytes for parameter in pl_module.parameters() if parameter.requires_grad)
        self.memory = {
            "parameters and buffers": _bytes_in(state),
            "own gradient": gradients,
            "buffer to mix models into": gradients,
            "state of the optimizer": _bytes_in([trainer.optimizers[0].state_dict()]),
            "state of the algorithm": _bytes_in(strategy.algorithm_states()[0]),
            "messages of a step from all neighbors": sum(strategy.traffic.values())
            // strategy.agents
            // trainer.global_step,
        }

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The agents are still there."""
        trainer.save_checkpoint(self.checkpoint)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """There are validation data."""
        self.validated = True


def _bytes_in(value: Any) -> int:
    """Of all tensors in containers."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(_bytes_in, value.values()))
    return sum(map(_bytes_in, value)) if isinstance(value, list | tuple) else 0
