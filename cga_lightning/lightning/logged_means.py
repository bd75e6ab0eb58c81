"""What agents log in an evaluation: one value for all of them, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cga_lightning.lightning import internals
from cga_lightning.lightning.agreement import monitors
from cga_lightning.lightning.log_mean import REDUCTIONS
from cga_lightning.lightning.peers import Peers
from cga_lightning.names import listed

if TYPE_CHECKING:
    from pytorch_lightning import Trainer


@dataclass(frozen=True)
class Logged:
    """What one agent has logged under one name in one place.

    Attributes:
        total: over its batches.
        weight: the number of samples, for a mean.
        needed_by: what needs a value of every agent, for the reader of an error; None if nothing does.
    """

    total: float
    weight: int
    needed_by: str | None


class LoggedMeans:
    """Averages what is logged for the epoch over the agents that have logged it, names apart.

    Weighted by samples, as over batches; for reduce_fx "sum", "max" and "min" it is that over agents. There is one
    exchange after each loader and one at the end, which come on every agent, whatever it has logged.

    Args:
        peers: the processes of the run.
    """

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._trainer: Trainer | None = None
        self._done: set[str] = set()

    def begin(self, trainer: Trainer) -> None:
        """An evaluation begins."""
        self.end()
        self._trainer = trainer
        internals.before_means(trainer, self._average)

    def end(self) -> None:
        """It has ended, maybe by an exception."""
        if self._trainer is not None:
            internals.means_as_usual(self._trainer)
        self._trainer, self._done = None, set()

    def _average(self) -> None:
        assert self._trainer is not None
        mine = {k: value for k, value in internals.logged_values(self._trainer).items() if k not in self._done}
        self._done |= mine.keys()
        acting = monitors(self._trainer)
        everyone: list[dict[str, Logged]] = self._peers.gather(
            {key: _logged(value, acting) for key, value in mine.items()}, "mean of logged values"
        )
        refuse_lone(everyone)
        for key in [*everyone[0], *(mine.keys() - everyone[0].keys())]:  # a collective of its own has its turn
            if key in mine:
                self._set(mine[key], [found[key] for found in everyone if key in found])

    @staticmethod
    def _set(value: internals.LoggedValue, logged: Sequence[Logged]) -> None:
        if value.reduction is None:
            value.compute()
        else:
            like, _ = value.total
            value.set(combined(logged, value.reduction).to(like))


def combined(logged: Sequence[Logged], reduction: str) -> Tensor:
    """The value over agents, float64."""
    totals = torch.tensor([one.total for one in logged], dtype=torch.float64)
    if reduction == "mean":
        return totals.sum() / sum(one.weight for one in logged)
    return REDUCTIONS[reduction](totals)


def refuse_lone(everyone: Sequence[Mapping[str, Logged]]) -> None:
    """Refuse what some agents alone have logged, where all are needed.

    Raises:
        ValueError: names the metric and the agents.
    """
    for key in dict.fromkeys(key for found in everyone for key in found):
        having = [rank for rank, found in enumerate(everyone) if key in found]
        reasons = [found[key].needed_by for found in everyone if key in found]
        reason = next(filter(None, reasons), None)
        if reason is not None and len(having) < len(everyone):
            lacking = [rank for rank in range(len(everyone)) if rank not in having]
            place, _, name = key.partition(".")
            raise ValueError(
                f"{name!r} was logged in {place} by agent {listed(having)}, but not by agent {listed(lacking)}, and "
                f"{reason}. Log it on every agent; or, if only one is meant, with rank_zero_only=True."
            )


def _logged(value: internals.LoggedValue, acting: Mapping[str, str]) -> Logged:
    needed_by = [f"{acting[name]} monitors it" for name in value.names if name in acting]
    if value.sync_dist:
        needed_by.append("sync_dist=True asks for a value of all")
    if value.reduction is None:
        return Logged(0.0, 0, "a torchmetrics object gathers its states from all")
    total, weight = value.total
    return Logged(float(total), weight, needed_by[0] if needed_by else None)
