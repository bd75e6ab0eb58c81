"""One exchange of an algorithm in compressed form."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from cga_lightning.compression import COMPRESSORS, Compressor, ErrorFeedback
from cga_lightning.core.agent import Agent
from cga_lightning.core.algorithm import LazyMessages, Messages
from cga_lightning.names import resolved


def compressor_of(given: Compressor | str | None) -> Compressor | None:
    """The compressor that was given, or the one of that name with its default settings; None for none.

    Raises:
        ValueError: there is none of that name.
        TypeError: neither a name nor a `Compressor`.
    """
    return None if given is None else resolved("compressor", COMPRESSORS, given, Compressor)


def compressed(
    agent: Agent, name: str, outbox: Messages, compressor: Compressor | None
) -> Generator[Messages, Messages, Messages]:
    """`inbox = yield outbox`, in fewer bytes: `inbox = yield from compressed(agent, name, outbox, compressor)`.

    Every directed edge has its own error memory and random stream, which the sender keeps in `agent.state[name]` by
    receiver. Without a compressor the messages go as they are.
    """
    if compressor is None:
        return (yield outbox)
    like = agent.params.new_empty(compressor.wire_size(agent.layout), dtype=torch.uint8)
    wires = yield LazyMessages(outbox, lambda rank: _compress(agent, name, rank, outbox[rank], compressor), like)
    return LazyMessages(wires, lambda rank: compressor.decompress(wires[rank], agent.layout))


def _compress(agent: Agent, name: str, receiver: int, message: Tensor, compressor: Compressor) -> Tensor:
    states = agent.state.setdefault(name, {})
    edge = agent.rank * (agent.topology.agents or 0) + receiver
    channel = (ErrorFeedback(compressor) if compressor.needs_feedback else compressor).fork(edge)
    if receiver in states:
        channel.load_state_dict(states[receiver])
    wire = channel.compress(message, agent.layout)
    states[receiver] = channel.state_dict()
    return wire
