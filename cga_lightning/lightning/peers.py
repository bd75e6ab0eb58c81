"""The processes of a run: what they tell each other beside the messages of the algorithm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from cga_lightning.core.communication import communication_error
from cga_lightning.passes.module_state import deviation, finite_part, mean_around


class Peers(Protocol):
    """All processes of a run, this one included."""

    @property
    def left(self) -> bool:
        """Whether an exception has stopped this process, so that the others do not answer."""

    def collective(self, name: str) -> AbstractContextManager[None]:
        """Inside, a collective of this name fails with an error that says where."""

    def gather(self, value: Any, name: str = "gather") -> list[Any]:
        """One value of every process, in the order of their ranks. A collective of this name."""

    def numbers(self, number: int, device: torch.device) -> list[int]:
        """The same for a small number, in the time of one small message."""

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over processes, to the bit the common value where all have the same. A collective."""

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

    def numbers(self, number: int, device: torch.device) -> list[int]:
        """The own number."""
        return [number]

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

    def numbers(self, number: int, device: torch.device) -> list[int]:
        """The same for a small number, in the time of one small message; the device is that of the group's backend."""
        numbers = torch.zeros(dist.get_world_size(), dtype=torch.int32, device=device)
        numbers[dist.get_rank()] = number
        with self.collective("agreement on what comes next"):
            dist.all_reduce(numbers)
        return numbers.tolist()

    def mean(self, tensor: Tensor) -> Tensor:
        """The mean over processes, to the bit the common value where all have the same. A collective."""
        count = dist.get_world_size()
        with self.collective("mean"):
            start = from_agent_0(finite_part(tensor))
            total = deviation(tensor, start, count).contiguous()
            dist.all_reduce(total)
        return mean_around(start, total)

    def largest(self, tensor: Tensor) -> Tensor:
        """The largest value of every element over processes, in place. A collective."""
        with self.collective("largest"):
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor


def from_agent_0(tensor: Tensor) -> Tensor:
    """A copy of the tensor of process 0, which all have in this shape and dtype. A collective."""
    received = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.broadcast(received.view(-1).view(torch.uint8), src=0)  # as bytes: gloo and NCCL know few dtypes
    return received
