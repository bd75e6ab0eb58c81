"""Exchanges as compressed differences to what both ends hold already."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cga_lightning.algorithms.wrapper import Wrapper, carried
from cga_lightning.compression import COMPRESSORS, Compressor, Layout
from cga_lightning.core.agent import Agent
from cga_lightning.core.algorithm import Algorithm, Exchange, Messages, Step
from cga_lightning.core.layout import FlatLayout
from cga_lightning.names import resolved


class Compressed(Wrapper):
    r"""Sends models, or what else changes little from step to step, as compressed differences.

    Of every directed edge i -> k both ends keep the same replica \hat m_{i \to k} of what was sent along it, and only
    the compressed difference to it travels:

        q_{i \to k} = C(m_{i \to k} - \hat m_{i \to k}),    \hat m_{i \to k} \leftarrow \hat m_{i \to k} + q_{i \to k},

    where m is the message of `algorithm` and C the `compressor`. The receiver takes the new replica for the message.
    What a difference loses stays in the next one, so that no error memory is needed, and as agents come to rest the
    replicas become exact: fixed points are those of the algorithm. The first message along an edge goes as it is.

    `Compressed(CGA(compressor=Ternary()))` sends models in 4 bits per element and cross-gradients in 1.6. Gradient
    tracking and SGP on directed graphs rest on sums that compression does not keep: expect a bias there.

    Args:
        algorithm: whose messages to compress.
        compressor: C, or its name; deterministic ones with a small error, such as `Rounded`, lose least.
        messages: what to compress, by the names of the algorithm's exchanges; all else goes as it is. Gradients of one
            batch are no good differences: give CGA a compressor of its own for them.

    Raises:
        ValueError: the algorithm has no exchange of that name, or there is no compressor of that name.
        TypeError: for what is no algorithm, or neither a name nor a `Compressor`.

    Source: Koloskova, Stich and Jaggi, "Decentralized Stochastic Optimization and Gossip Algorithms with Compressed
    Communication", ICML 2019 (CHOCO), with a consensus step size of 1 and the exact own model.
    """

    def __init__(
        self, algorithm: Algorithm, compressor: Compressor | str = "rounded", *, messages: Sequence[str] = ("models",)
    ) -> None:
        super().__init__(algorithm)
        self.compressor: Compressor = resolved("compressor", COMPRESSORS, compressor, Compressor)
        self.messages = tuple(messages)
        for name in self.messages:
            if name not in algorithm.exchanges:
                raise ValueError(
                    f"Compressed(messages=...) must name exchanges of the algorithm, got {name!r}, but {algorithm!r} "
                    f"has {', '.join(map(repr, algorithm.exchanges))}."
                )

    def step(self, agent: Agent) -> Step:
        """The algorithm's step with compressed messages."""
        agent.state["exchanges"] = 0
        yield from carried(self.algorithm.step(agent), lambda exchange: self._compressed(agent, exchange))

    def after_step(self, agent: Agent) -> Step:
        """What the algorithm does after the optimizer step, with compressed messages."""
        yield from carried(self.algorithm.after_step(agent), lambda exchange: self._compressed(agent, exchange))

    def _compressed(self, agent: Agent, exchange: Exchange) -> Generator[Exchange, Messages, Messages]:
        place: int = agent.state["exchanges"]
        name = self.exchanges[place] if place < len(self.exchanges) else ""
        inbox = yield from differences(agent, name, exchange, self.compressor if name in self.messages else None)
        agent.state["exchanges"] = place + 1
        return inbox


def differences(
    agent: Agent, name: str, yielded: Messages | Exchange, compressor: Compressor | None
) -> Generator[Exchange, Messages, Messages]:
    """`inbox = yield yielded`, as compressed differences: `inbox = yield from differences(agent, name, ...)`.

    In `agent.state[name]` the agent keeps the replicas of what it has "told" every receiver and of what it has "heard"
    from every sender, and the "draws" of compressors that draw at random. Without a compressor, and where messages are
    compressed already, they go as they are.
    """
    exchange = Exchange.of(yielded)
    expected = exchange.expected
    if compressor is None or not all(m.is_floating_point() for m in (*exchange.outbox.values(), *expected.values())):
        return (yield exchange)
    state = agent.state.get(name, {})
    outgoing = _outgoing(agent, exchange.outbox, state.get("told", {}), state.get("draws", {}), compressor)
    heard = dict(state.get("heard", {}))
    likes = {rank: _wire_like(agent, like, compressor) if rank in heard else like for rank, like in expected.items()}
    wires = yield Exchange({rank: sent.wire for rank, sent in outgoing.items()}, exchange.senders, likes)
    inbox = {rank: _decoded(agent, wire, heard.get(rank), compressor) for rank, wire in wires.items()}
    agent.state[name] = {
        "told": {**state.get("told", {}), **{rank: sent.replica() for rank, sent in outgoing.items()}},
        "heard": {**heard, **{rank: _kept(message) for rank, message in inbox.items()}},
        "draws": {**state.get("draws", {}), **{rank: sent.draws for rank, sent in outgoing.items() if sent.draws}},
    }
    return inbox


class _Outgoing:
    """A message on its way to those who hold the same replica.

    Attributes:
        wire: what travels: the whole message `[d]` if they hold none, else the compressed difference to it.
        draws: the state of a compressor that draws at random.
    """

    def __init__(
        self, agent: Agent, message: Tensor, held: Tensor | None, channel: Compressor, draws: Mapping[str, Any] | None
    ) -> None:
        self._agent, self._held, self._channel = agent, held, channel
        self._replica: Tensor | None = None
        if draws:
            channel.load_state_dict(draws)
        self.wire = message if held is None else channel.compress(message - held, _layout(agent, message))
        self.draws = channel.state_dict()

    def replica(self) -> Tensor:
        """What they hold after this exchange; to be asked for when it is over."""
        if self._replica is None:
            self._replica = _kept(_decoded(self._agent, self.wire, self._held, self._channel))
        return self._replica


def _outgoing(
    agent: Agent,
    outbox: Messages,
    told: Mapping[int, Tensor],
    draws: Mapping[int, Mapping[str, Any]],
    compressor: Compressor,
) -> dict[int, _Outgoing]:
    """By receiver. One for all that get the same message and hold the same replica, unless each edge has its draws."""
    made: dict[object, _Outgoing] = {}
    outgoing = {}
    for rank, message in outbox.items():
        channel = compressor.fork(agent.rank * (agent.topology.agents or 0) + rank)
        key = (id(message), id(told.get(rank))) if channel is compressor else rank
        if key not in made:
            made[key] = _Outgoing(agent, message, told.get(rank), channel, draws.get(rank))
        outgoing[rank] = made[key]
    return outgoing


def _decoded(agent: Agent, wire: Tensor, held: Tensor | None, compressor: Compressor) -> Tensor:
    """The message as the receiver has it: the same at both ends."""
    return wire if held is None else compressor.decompress(wire, _layout(agent, held)).add_(held)


def _kept(message: Tensor) -> Tensor:
    """A copy to remember. What is not finite is forgotten, so that one overflow does not stay in it for ever."""
    return message.nan_to_num(0.0, 0.0, 0.0)


def _wire_like(agent: Agent, message: Tensor, compressor: Compressor) -> Tensor:
    return message.new_empty(compressor.wire_size(_layout(agent, message)), dtype=torch.uint8)


def _layout(agent: Agent, message: Tensor) -> Layout:
    """That of the agent, or of one part where the message is of another size or dtype, as the push-sum's."""
    fits = message.numel() == agent.layout.numel and message.dtype == agent.layout.dtype
    return agent.layout if fits else FlatLayout([message], alignment=1)
