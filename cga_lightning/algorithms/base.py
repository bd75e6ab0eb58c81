"""The contract: an algorithm is one step, seen from one agent, without I/O."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from typing import Any, ClassVar, TypeAlias

from torch import Tensor

from cga_lightning.agent import Agent

Messages: TypeAlias = Mapping[int, Tensor]
"""Tensors by rank: to whom they go (outbox) or from whom they come (inbox)."""

Step: TypeAlias = Generator[Messages, Messages, None]
"""Yields an outbox and receives the inbox of the same exchange."""


class Algorithm(ABC):
    """One decentralized method.

    `step` and `after_step` are generators. Each `yield` is one exchange with the neighbors: it gives the outbox
    `{rank: tensor}` and returns the inbox `{rank: tensor}`, with one message from every agent that was written to.
    In one exchange all messages have the same shape and dtype. A received tensor may be overwritten at the next step:
    copy what is to be kept.

    The first exchange of `step` starts before the agent has seen its data, so that the messages travel during its own
    forward and backward pass: `agent.grad` exists from the second one on. After `step` the optimizer updates
    `agent.params` along `agent.grad`; then comes `after_step`.
    """

    exchanges: ClassVar[tuple[str, ...]] = ()
    """What is sent in each exchange of one step, in order: the keys of `strategy.traffic` and of error messages."""

    @abstractmethod
    def step(self, agent: Agent) -> Step:
        """From the parameters and the gradient of `agent` to those that the optimizer steps from."""

    def after_step(self, agent: Agent) -> Step:
        """After the optimizer step; nothing by default."""
        yield from ()

    def settings(self) -> dict[str, Any]:
        """The values that decide what this algorithm computes; agents must agree on them."""
        return {name.lstrip("_"): value for name, value in vars(self).items()}

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings().items())
        return f"{type(self).__name__}({settings})"
