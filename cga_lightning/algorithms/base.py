"""The contract: an algorithm is one step, seen from one agent, without I/O."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np
from torch import Tensor

from cga_lightning.agent import Agent
from cga_lightning.topology import Topology

Messages: TypeAlias = Mapping[int, Tensor]
"""Tensors by rank: to whom they go (outbox) or from whom they come (inbox)."""


class Exchange(NamedTuple):
    """One exchange of one agent, where those that it hears of are not those that it writes to."""

    outbox: Messages
    senders: Sequence[int]
    """From whom a message comes."""
    like: Tensor | None
    """A tensor of the shape and dtype of the messages; None if no message comes."""

    @classmethod
    def of(cls, yielded: Messages | Exchange) -> Exchange:
        """What an algorithm yielded; a plain outbox brings a message from everyone in it."""
        if isinstance(yielded, Exchange):
            return yielded
        return cls(yielded, sorted(yielded), next(iter(yielded.values()), None))


Step: TypeAlias = Generator[Messages | Exchange, Messages, None]
"""Yields an outbox and receives the inbox of the same exchange."""


def gossip(agent: Agent, message: Tensor) -> Exchange:
    """Send `message` along all edges that leave `agent`, receive along all that lead to it."""
    return Exchange(dict.fromkeys(agent.out_neighbors, message), agent.in_neighbors, message)


class Algorithm(ABC):
    """One decentralized method.

    `step` and `after_step` are generators. Each `yield` is one exchange with the neighbors: it gives the outbox
    `{rank: tensor}` and returns the inbox `{rank: tensor}`, with one message from every agent that was written to. To
    hear of others than one writes to, yield an `Exchange`. In one exchange all messages have the same shape and dtype.
    A sent tensor must not be changed, as neighbors may read it; a received one may be overwritten at the next step:
    copy what is to be kept.

    The first exchange of `step` starts before the agent has seen its data, so that the messages travel during its own
    forward and backward pass: `agent.grad` exists from the second one on. After `step` the optimizer updates
    `agent.params` along `agent.grad`; then comes `after_step`.
    """

    exchanges: ClassVar[tuple[str, ...]] = ()
    """What is sent in each exchange of one step, in order: the keys of `strategy.traffic` and of error messages."""

    graphs: ClassVar[Literal["undirected", "balanced", "any"]] = "undirected"
    """Where it runs: every edge has a way back; or the mixing matrix is doubly stochastic; or its columns sum to 1."""

    def check(self, topology: Topology) -> None:
        """Refuse a topology that this algorithm is not made for, see `graphs`.

        Raises:
            ValueError: says which will do.
        """
        if self.graphs == "undirected" and not topology.symmetric:
            raise ValueError(
                f"{self!r} answers those that write to it, but edges of {topology!r} have no way back. Use an "
                'undirected topology such as "ring" or "exponential", or an algorithm for directed ones such as "sgp".'
            )
        if self.graphs == "balanced" and not np.allclose(topology.mixing_matrix().sum(axis=1), 1):
            raise ValueError(
                f"{self!r} would not reach the average on {topology!r}, where agents have more edges in than out. Use "
                'the algorithm "sgp", or a topology where every agent has as many edges in as out.'
            )

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
