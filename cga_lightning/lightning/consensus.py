"""The consensus: the mean of all agents' models, and what is evaluated, saved and exported with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from itertools import chain, starmap
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cga_lightning.copy_on_write import lazily_copied, shares_memory
from cga_lightning.lightning.peers import Peers
from cga_lightning.lightning.swapped import Swapped
from cga_lightning.passes.module_state import Key, ModuleState, State, squared_distance

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule


class Remembered:
    """A mean, and the tensors that it is of, as long as nobody has written into them.

    Args:
        states: the tensors of the agents of this process.
        mean: of all agents.
    """

    def __init__(self, states: Sequence[State], mean: State) -> None:
        self._mean = mean
        self._copies = [[lazily_copied(tensor) for tensor in state] for state in states]

    def of(self, states: Sequence[State]) -> State | None:
        """The mean, if it is that of these tensors."""
        pairs = zip(chain.from_iterable(states), chain.from_iterable(self._copies), strict=False)
        same = list(map(len, states)) == list(map(len, self._copies)) and all(starmap(_unchanged, pairs))
        return self._mean if same else None


def _unchanged(tensor: Tensor, copy: Tensor) -> bool:
    return tensor.shape == copy.shape and tensor.dtype == copy.dtype and shares_memory(tensor, copy)


def _shapes_of(states: Sequence[State]) -> str:
    """A short text that is the same for tensors of the same shapes and dtypes."""
    kinds = ";".join(f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in chain.from_iterable(states))
    return sha256(kinds.encode()).hexdigest()


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
        self._last: Remembered | None = None
        self._checked = ""

    def mean(self) -> State:
        """The mean of all agents' models. A collective: every process must call it.

        Where nobody has changed its model since the last one, that is the mean still.
        """
        with self.put_aside():
            states = self._states()
            shapes = _shapes_of(states)
            known = None if self._last is None else self._last.of(states)
            answers = self._peers.gather((shapes, known is not None), "agreement on the model, to average it")
            if shapes != self._checked or any(theirs != shapes for theirs, _ in answers):
                self._check()  # of all agents, if of one
                self._checked = shapes
            if known is None or not all(unchanged for _, unchanged in answers):
                known = self._peers.mean(states)
                self._last = Remembered(states, known)
            return [lazily_copied(tensor) for tensor in known]

    def forget(self) -> None:
        """A step begins: models will change."""
        self._last = None

    def distance(self) -> Tensor:
        """The root mean square over all agents of |x^j - mean|, float64. A collective."""
        mean = self.mean()
        with self.put_aside():
            squares = [squared_distance(state, mean) for state in self._states()]
        return self._peers.mean([[torch.stack(squares).mean()]])[0].sqrt()

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
                self._swapped.append(Swapped(module, self._peers.mean(states)))

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
        final = self._peers.mean([ModuleState(module).capture()])
        self.leave()
        return final

    def of_averages(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """The checkpoint; where a callback has put moving averages in place of the model, with their mean over agents.

        A collective.
        """
        if "averaging_state" not in checkpoint:  # that of Lightning's WeightAveraging
            return checkpoint
        averages = checkpoint["state_dict"]
        mean = self._peers.mean([list(averages.values())])
        return {**checkpoint, "state_dict": dict(zip(averages, mean, strict=True))}
