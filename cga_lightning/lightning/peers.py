"""The processes of a run: what they tell each other beside the messages of the algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Protocol

import torch.distributed as dist
from torch import Tensor

from cga_lightning.core.communication import communication_error


class Peers(Protocol):
    """All processes of a run, this one included."""

    @property
    def left(self) -> bool:
        """Whether an exception has stopped this process, so that the others do not answer."""

    def collective(self, name: str) -> AbstractContextManager[None]:
        """Inside, a collective of this name fails with an error that says where."""

    def gather(self, value: Any, name: str = "gather") -> list[Any]:
        """One value of every process, in the order of their ranks. A collective of this name."""

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over processes, in place. A collective."""

    def largest(self, tensor: Tensor) -> Tensor:
        """The largest value of every element over processes, in place. A collective."""


class OneProcess:
    """A run in a single process has nobody to ask."""

    left = False

    def collective(self, name: str) -> AbstractContextManager[None]:
        """Nothing to wait for."""
        return nullcontext()

    def gather(self, value: Any, name: str = "gather") -> list[Any]:
        """The own value."""
        return [value]

    def mean(self, tensor: Tensor) -> Tensor:
        """The tensor."""
        return tensor

    def largest(self, tensor: Tensor) -> Tensor:
        """The tensor."""
        return tensor


class ProcessGroup:
    """The processes of the default group of `torch.distributed`.

    Args:
        timeout: after which a collective gives up; for the message only.
        interrupted: whether an exception has stopped this process.
        step: the number of the step that this process is at.
    """

    def __init__(self, timeout: timedelta, interrupted: Callable[[], bool], step: Callable[[], int]) -> None:
        self._timeout = timeout
        self._interrupted = interrupted
        self._step = step

    @property
    def left(self) -> bool:
        """Whether an exception has stopped this process, so that the others do not answer."""
        return self._interrupted()

    @contextmanager
    def collective(self, name: str) -> Iterator[None]:
        """Inside, a collective of this name fails with an error that says where.

        Raises:
            CommunicationError: names the collective, this agent and the step.
        """
        try:
            yield
        except RuntimeError as error:
            rank = dist.get_rank() if dist.is_initialized() else 0
            what = f"complete the collective {name!r} with all other agents at step {self._step()}"
            raise communication_error(rank, what, "the others", self._timeout, error) from error

    def gather(self, value: Any, name: str = "gather") -> list[Any]:
        """One value of every process, in the order of their ranks. A collective of this name."""
        values: list[Any] = [None] * dist.get_world_size()
        with self.collective(name):
            dist.all_gather_object(values, value)
        return values

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over processes, in place. A collective."""
        with self.collective("mean"):
            dist.all_reduce(tensor)
        return tensor.div_(dist.get_world_size())

    def largest(self, tensor: Tensor) -> Tensor:
        """The largest value of every element over processes, in place. A collective."""
        with self.collective("largest"):
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor
