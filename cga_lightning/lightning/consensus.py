"""The consensus: the mean of all agents' models, and what is evaluated, saved and exported with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cga_lightning.lightning.peers import Peers
from cga_lightning.lightning.swapped import Swapped
from cga_lightning.passes.module_state import Key, ModuleState, State, mean_state, squared_distance

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule


class Consensus:
    """Averages the tensors of all agents, and puts the mean into the module for as long as it is evaluated.

    Args:
        peers: the processes of the run.
        states: the tensors of the agents of this process, while the module holds those of an agent.
        overwrite: copies values into these tensors of every agent of this process.
        check: raises unless all agents have tensors of the same shapes. A collective.
    """

    def __init__(
        self,
        peers: Peers,
        states: Callable[[], Sequence[State]],
        overwrite: Callable[[Mapping[Key, Tensor]], None],
        check: Callable[[], None],
    ) -> None:
        self._peers = peers
        self._states = states
        self._overwrite = overwrite
        self._check = check
        self._swapped: list[Swapped] = []
        self._is_mean = True  # what the module holds, if it is swapped

    def mean(self) -> State:
        """The mean of all agents' models. A collective: every process must call it."""
        with self.put_aside():
            self._check()
            return mean_state(self._states(), self._peers.mean)

    def distance(self) -> Tensor:
        """The root mean square over all agents of |x^j - mean|, float64. A collective."""
        mean = self.mean()
        with self.put_aside():
            squares = [squared_distance(state, mean) for state in self._states()]
        return self._peers.mean(torch.stack(squares).mean()).sqrt()

    # --- in the module

    @property
    def inside(self) -> bool:
        """Whether the module holds the consensus now."""
        return bool(self._swapped) and self._is_mean

    def enter(self, module: LightningModule) -> None:
        """From now on the module holds the consensus, until `leave`. A collective, unless it does so already."""
        if not self._swapped:
            self._swapped, self._is_mean = [Swapped(module, self.mean(), self._overwrite)], True

    def enter_with(self, module: LightningModule, values: State) -> None:
        """From now on the module holds these values of the one agent of this process in its place, until `leave`."""
        if not self._swapped:
            self._swapped, self._is_mean = [Swapped(module, values)], False

    def follow(self, module: LightningModule) -> None:
        """Where callbacks have put other weights in its place, such as moving averages, the mean of these.

        Until `unfollow`, which gives every agent back what its callback has put there. A collective.
        """
        if self.inside and len(self._swapped) == 1 and self._swapped[0].is_new:
            replaced = self._swapped[0].replaced()
            if any(self._peers.gather(replaced, "agreement on the model that is validated")):
                states = [ModuleState(module).capture()]
                self._swapped.append(Swapped(module, mean_state(states, self._peers.mean)))

    def unfollow(self) -> None:
        """Before the callbacks that have put other weights in place take them back."""
        if len(self._swapped) > 1:
            self._swapped.pop().leave()

    def leave(self) -> None:
        """The module holds the tensors of its agent again. What was written into buffers goes to all agents."""
        while self._swapped:
            self._swapped.pop().leave()

    def drop(self) -> None:
        """The same after an exception: nothing that was written is kept."""
        while self._swapped:
            self._swapped.pop().put_aside()

    @contextmanager
    def put_aside(self) -> Iterator[None]:
        """Inside, the module holds the tensors of its agent, also while it is evaluated."""
        swapped, self._swapped = self._swapped, []
        for one in reversed(swapped):
            one.leave()
        try:
            yield
        finally:
            for one in swapped:
                one.come_back()
            self._swapped = swapped

    @contextmanager
    def swapped_into(self, module: LightningModule) -> Iterator[None]:
        """Inside, the module holds the consensus. A collective, unless it does so already."""
        if self.inside:
            yield
        else:
            mean = self.mean()
            with self.put_aside(), ModuleState(module).activated(mean):
                yield

    def left_in(self, module: LightningModule) -> State:
        """What the module ends with: the consensus, and what callbacks have written into it since. A collective."""
        self.enter(module)
        final = mean_state([ModuleState(module).capture()], self._peers.mean)
        self.leave()
        return final

    def of_averages(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """The checkpoint; where a callback has put moving averages in place of the model, with their mean over agents.

        A collective.
        """
        if "averaging_state" not in checkpoint:  # that of Lightning's WeightAveraging
            return checkpoint
        averages = checkpoint["state_dict"]
        mean = mean_state([list(averages.values())], self._peers.mean)
        return {**checkpoint, "state_dict": dict(zip(averages, mean, strict=True))}
