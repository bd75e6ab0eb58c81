"""What agents in different processes must agree on: the model and the settings, and what they have measured.

Callbacks decide by logged values to stop, to save and to change the learning rate, and must decide alike everywhere.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cga_lightning.lightning import internals
from cga_lightning.lightning.buffers import ADVICE
from cga_lightning.lightning.peers import Peers

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

_log = logging.getLogger(__name__)


def monitored(trainer: Trainer) -> dict[str, float]:
    """The values that were logged so far of all metrics by which callbacks or schedulers act."""
    metrics = trainer.callback_metrics
    return {name: float(metrics[name]) for name in monitors(trainer) if name in metrics}


def monitors(trainer: Trainer) -> dict[str, str]:
    """The names of the metrics by which callbacks or schedulers act, and what acts."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    found = [(getattr(callback, "monitor", None), type(callback).__name__) for callback in callbacks]
    plateaus = [config for config in trainer.lr_scheduler_configs if config.reduce_on_plateau]
    found += [(config.monitor, type(config.scheduler).__name__) for config in plateaus]
    return {str(name): who for name, who in found if name is not None}


class DifferenceWarning:
    """Tells once for every metric that agents have logged different values of it."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def look_at(self, metrics: Sequence[Mapping[str, float]]) -> None:
        """Compare the metrics of all agents."""
        for name in metrics[0]:
            values = [found.get(name, math.nan) for found in metrics]
            if name not in self._told and any(value != values[0] for value in values[1:] if not math.isnan(value)):
                self._told.add(name)
                _log.warning(
                    f"The agents have logged different values of {name!r}: {', '.join(f'{v:g}' for v in values)}. "
                    f"Callbacks that monitor it would act on the value of their own agent: use self.log({name!r}, ..., "
                    "sync_dist=True)."
                )


DECIDING = (
    *("max_epochs", "min_epochs", "max_steps", "min_steps", "accumulate_grad_batches", "check_val_every_n_epoch"),
    *("val_check_interval", "limit_train_batches", "limit_val_batches", "overfit_batches", "num_sanity_val_steps"),
    *("precision", "gradient_clip_val", "gradient_clip_algorithm", "reload_dataloaders_every_n_epochs"),
)
"""Attributes of a Trainer that decide how long a fit is, and where agents come together in it."""
ACTING = frozenset({"Checkpoint", "EarlyStopping", "WeightAveraging", "StochasticWeightAveraging", "ConsensusMonitor"})
"""Classes of callbacks that ask all agents, and their bases."""


def trainer_settings(trainer: Trainer) -> list[str]:
    """What agents must agree on to make the same steps and to come together at the same places."""
    found = [f"Trainer({name}={getattr(trainer, name, None)!r})" for name in DECIDING]
    found.append("validation data" if internals.has_validation(trainer) else "no validation data")
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    acting = [one for one in callbacks if ACTING & {kind.__name__ for kind in type(one).__mro__}]
    return found + [f"callback {type(one).__name__} {getattr(one, 'state_key', '')}" for one in acting]


def tell_differences(found: Mapping[str, Any], peers: Peers) -> None:
    """Say once what may differ between agents, and does. A collective.

    Args:
        found: the values of this process, by name.
        peers: the processes of the run.
    """
    everyone: list[Mapping[str, Any]] = peers.gather(dict(found), "comparison of settings")
    for name in everyone[0]:
        values = [theirs.get(name) for theirs in everyone]
        if any(value != values[0] for value in values) and peers.rank == 0:
            _log.warning(f"The agents have different values of the {name}: {', '.join(map(str, values))}.")


def check_same_model(
    module: LightningModule, settings: Sequence[str], peers: Peers, why: str = "which is new or has changed here"
) -> None:
    """All agents need parameters and buffers of the same names, shapes and dtypes, and the same settings.

    A collective.

    Args:
        module: the user's.
        settings: those of the strategy, for the reader of an error.
        peers: the processes of the run.
        why: the occasion, for an agent that the others do not answer.

    Raises:
        ValueError: names the first difference.
    """
    mine = [*settings, *_signature(module)]
    signatures: list[list[str]] = peers.gather(mine, f"agreement on the model, {why}")
    for rank, theirs in enumerate(signatures):
        for a, b in _unequal(signatures[0], theirs):
            of_buffer = any(entry.startswith("buffer ") for entry in (a, b))
            raise ValueError(
                "All agents must train the same kind of model with the same settings, but agent 0 has "
                f"{a}, agent {rank} has {b}. {ADVICE if of_buffer else ''} Build the LightningModule and the strategy "
                "with the same arguments on every agent."
            )


def _signature(module: LightningModule) -> list[str]:
    tensors: dict[str, Tensor] = {
        f"{'parameter' if p.requires_grad else 'frozen'} {name}": p for name, p in module.named_parameters()
    }
    tensors |= {f"buffer {name}": buffer for name, buffer in module.named_buffers()}
    return [f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in tensors.items()]


def _unequal(first: list[str], second: list[str]) -> list[tuple[str, str]]:
    pairs = zip_longest(first, second, fillvalue="no further tensor")
    return [(a, b) for a, b in pairs if a != b]
