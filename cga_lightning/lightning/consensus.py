"""The consensus: the mean of all agents' models, and what is evaluated, saved and exported with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cga_lightning.lightning.peers import Peers
from cga_lightning.passes.module_state import ModuleState, State, mean_state, squared_distance

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule


class Consensus:
    """Averages the tensors of all agents.

    Args:
        peers: the processes of the run.
        states: the tensors of the agents of this process.
        check: raises unless all agents have tensors of the same shapes. A collective.
    """

    def __init__(self, peers: Peers, states: Callable[[], Sequence[State]], check: Callable[[], None]) -> None:
        self._peers = peers
        self._states = states
        self._check = check
        self._kept: State | None = None

    def mean(self) -> State:
        """The mean of all agents' models. A collective: every process must call it."""
        self._check()
        return mean_state(self._states(), self._peers.mean)

    def distance(self) -> Tensor:
        """The root mean square over all agents of |x^j - mean|, float64. A collective."""
        mean = self.mean()
        squares = [squared_distance(state, mean) for state in self._states()]
        return self._peers.mean(torch.stack(squares).mean()).sqrt()

    @contextmanager
    def swapped_into(self, module: LightningModule) -> Iterator[None]:
        """Inside, the module holds the consensus. A collective."""
        with ModuleState(module).activated(self.mean()):
            yield

    @contextmanager
    def validating(self, module: LightningModule) -> Iterator[None]:
        """The same for one validation batch; the first one averages for all of them, until `forget`.

        Not earlier, since callbacks may have put other weights in place just before, such as moving averages.
        """
        if self._kept is None:
            self._kept = self.mean()
        with ModuleState(module).activated(self._kept):
            yield

    def of_averages(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """The checkpoint; where a callback has put moving averages in place of the model, with their mean over agents.

        A collective.
        """
        if "averaging_state" not in checkpoint:  # that of Lightning's WeightAveraging
            return checkpoint
        averages = checkpoint["state_dict"]
        mean = mean_state([list(averages.values())], self._peers.mean)
        return {**checkpoint, "state_dict": dict(zip(averages, mean, strict=True))}

    def forget(self) -> None:
        """Validation has ended."""
        self._kept = None
