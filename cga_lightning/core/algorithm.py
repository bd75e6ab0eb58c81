"""The contract: an algorithm is one step, seen from one agent, without I/O."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np
from torch import Tensor

from cga_lightning.core.agent import Agent
from cga_lightning.topology import Topology

Messages: TypeAlias = Mapping[int, Tensor]
"""Tensors by rank: to whom they go (outbox) or from whom they come (inbox)."""


Graphs: TypeAlias = Literal["fixed", "undirected", "balanced", "any"]
"""Where an algorithm runs, see `Algorithm.graphs`."""


class LazyMessages(Mapping[int, Tensor]):
    """Messages that are computed, or waited for, when they are asked for, each once.

    As an outbox each travels while the next is computed.

    Args:
        ranks: to whom they go, or from whom they come.
        message: computes one of them.
        like: a tensor of the shape and dtype of all of them; needed in an outbox.
    """

    def __init__(self, ranks: Iterable[int], message: Callable[[int], Tensor], like: Tensor | None = None) -> None:
        self.like = like
        self._known: dict[int, Tensor | None] = dict.fromkeys(sorted(ranks))
        self._message = message

    def __getitem__(self, rank: int) -> Tensor:
        found = self._known[rank]
        if found is None:
            found = self._known[rank] = self._message(rank)
        return found

    def __iter__(self) -> Iterator[int]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


class Exchange(NamedTuple):
    """One exchange of one agent, where those that it hears of are not those that it writes to."""

    outbox: Messages
    senders: Sequence[int]
    """From whom a message comes."""
    like: Tensor | Messages | None
    """A tensor of the shape and dtype of the messages; by sender where they differ; None if no message comes."""

    @classmethod
    def of(cls, yielded: Messages | Exchange) -> Exchange:
        """What an algorithm yielded; a plain outbox brings a message from everyone in it."""
        if isinstance(yielded, Exchange):
            return yielded
        like = yielded.like if isinstance(yielded, LazyMessages) else next(iter(yielded.values()), None)
        return cls(yielded, sorted(yielded), like)

    def computed(self) -> Exchange:
        """The same, with every message there."""
        return Exchange(dict(self.outbox), self.senders, self.like)

    @property
    def expected(self) -> dict[int, Tensor]:
        """By sender: a tensor of the shape and dtype of what comes from it."""
        if self.like is None:
            return {}
        return {rank: self.like if isinstance(self.like, Tensor) else self.like[rank] for rank in self.senders}


Step: TypeAlias = Generator[Messages | Exchange, Messages, None]
"""Yields an outbox and receives the inbox of the same exchange."""


def gossip(agent: Agent, message: Tensor) -> Exchange:
    """Send `message` along all edges that leave `agent`, receive along all that lead to it."""
    return Exchange(dict.fromkeys(agent.out_neighbors, message), agent.in_neighbors, message)


class Algorithm(ABC):
    """One decentralized method.

    `step` and `after_step` are generators. Each `yield` is one exchange with the neighbors: it gives the outbox
    `{rank: tensor}` and returns the inbox `{rank: tensor}`, with one message from every agent that was written to. To
    hear of others than one writes to, or messages of several shapes and dtypes, yield an `Exchange`. Messages that take
    time to compute are `LazyMessages`, each of which travels while the next is computed. An inbox waits for a message
    when that is asked for.
    A sent tensor must not be changed before the exchange has returned. A received one is the receiver's to overwrite,
    until the same exchange of the next step, which may use its memory again: copy what is to be kept.

    The messages of the first exchange of `step` travel during the own forward and backward pass, unless `agent.grad` is
    asked for before: then that exchange waits for it. Only where steps differ in that, what stands before the exchange
    may run twice, the second time from the same `params`, `state` and `diagnostics`. A step may do without any
    exchange. After `step` the optimizer updates `agent.params` along `agent.grad`; then comes `after_step`.

    What an algorithm keeps from step to step goes into `agent.state`. Each algorithm object has one of its own: a
    wrapper and the algorithm that it holds in an attribute may use the same keys.
    """

    exchanges: ClassVar[tuple[str, ...]] = ()
    """What is sent in each exchange of one step, in order: the keys of `strategy.traffic` and of error messages."""

    graphs: ClassVar[Graphs] = "undirected"
    """Where it runs: every edge has a way back, and "fixed": that at every step; or the mixing matrix is doubly
    stochastic; or its columns sum to 1."""

    averages_models_only: ClassVar[bool] = False
    """Whether agents agree by averaging models alone, after each has stepped along its own gradient. With an optimizer
    that is not linear in the gradient they end elsewhere than one model on all data, of which strategies warn."""

    most_neighbors: ClassVar[int | None] = None
    """Of how many neighbors an agent can take messages up in one step; None for any number."""

    takes_momentum: ClassVar[bool] = True
    """Whether the optimizer may have a momentum of its own."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in ("step", "after_step"):
            if name in vars(cls):
                setattr(cls, name, _with_own_state(vars(cls)[name]))

    def check(self, topology: Topology) -> None:
        """Refuse a topology that this algorithm is not made for, see `graphs` and `most_neighbors`.

        Raises:
            ValueError: says which will do.
        """
        if self.graphs in ("undirected", "fixed") and not topology.symmetric:
            raise ValueError(
                f"{self!r} answers those that write to it, but edges of {topology!r} have no way back. Use an "
                'undirected topology such as "ring" or "exponential", or an algorithm for directed ones such as "sgp".'
            )
        if self.graphs == "fixed" and topology.phases != (topology,):
            raise ValueError(
                f"{self!r} remembers what was said along each edge, but the edges of {topology!r} vary in time. Use "
                'a topology that does not, such as "ring" or "exponential", or an algorithm such as "dpsgd".'
            )
        if self.graphs == "balanced" and not np.allclose(topology.mixing_matrix().sum(axis=1), 1):
            raise ValueError(
                f"{self!r} would not reach the average on {topology!r}, where agents have more edges in than out. Use "
                'the algorithm "sgp", or a topology where every agent has as many edges in as out.'
            )
        rank, degree = topology.highest_degree()
        if self.most_neighbors is not None and degree > self.most_neighbors:
            raise ValueError(
                f"{self!r} projects onto the cross-gradients of at most {self.most_neighbors} neighbors, but agent "
                f'{rank} of {topology!r} has {degree}. Use a sparser topology such as "exponential" or "torus", or '
                'an algorithm without a projection such as "ngc".'
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


def _with_own_state(generate: Callable[[Any, Agent], Step]) -> Callable[[Any, Agent], Step]:
    """Let `agent.state` be that of the algorithm whose generator runs, and nobody else's."""

    @wraps(generate)
    def run(self: Algorithm, agent: Agent) -> Step:
        with agent.running(self):
            step = generate(self, agent)
        if not isinstance(step, Generator):
            raise TypeError(
                f"{type(self).__name__}.{generate.__name__} must be a generator, got {type(step).__name__}. Yield "
                "{neighbor: tensor} to exchange messages; a method that sends nothing ends with `yield from ()`."
            )
        inbox: Any = None  # which starts the generator
        while True:
            with agent.running(self):
                try:
                    exchange = step.send(inbox)
                except StopIteration:
                    return
            inbox = yield _computed_with_own_state(self, agent, exchange)

    return run


def _computed_with_own_state(algorithm: Algorithm, agent: Agent, yielded: Messages | Exchange) -> Messages | Exchange:
    outbox = yielded.outbox if isinstance(yielded, Exchange) else yielded
    if not isinstance(outbox, LazyMessages):
        return yielded

    def message(rank: int) -> Tensor:
        with agent.running(algorithm):
            return outbox[rank]

    lazy = LazyMessages(outbox, message, outbox.like)
    return Exchange(lazy, yielded.senders, yielded.like) if isinstance(yielded, Exchange) else lazy
