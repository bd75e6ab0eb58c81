"""Any algorithm with a shorter float on the wire."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from cga_lightning.algorithms.wrapper import Wrapper, carried
from cga_lightning.core.agent import Agent
from cga_lightning.core.algorithm import Algorithm, Exchange, LazyMessages, Messages, Step


class WireDtype(Wrapper):
    """Rounds all messages of floating dtype to a shorter one; agents compute, and keep their own model, as before.

    `WireDtype(CGA(compressor="scaled_sign"))` sends models in 16 bits and cross-gradients in one. Gradient tracking and
    SGP on directed graphs rest on sums that rounding does not keep: expect a small bias there.

    Args:
        algorithm: whose messages to round.
        dtype: on the wire.

    Raises:
        ValueError: not a floating dtype.
        TypeError: for what is no algorithm.
    """

    def __init__(self, algorithm: Algorithm, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__(algorithm)
        if not dtype.is_floating_point:
            raise ValueError(f"WireDtype needs a floating dtype such as torch.bfloat16, got {dtype}.")
        self.dtype = dtype

    def step(self, agent: Agent) -> Step:
        """The algorithm's step with rounded messages."""
        yield from carried(self.algorithm.step(agent), self._rounded)

    def after_step(self, agent: Agent) -> Step:
        """What the algorithm does after the optimizer step, with rounded messages."""
        yield from carried(self.algorithm.after_step(agent), self._rounded)

    def _rounded(self, exchange: Exchange) -> Generator[Exchange, Messages, Messages]:
        outbox, expected = exchange.outbox, exchange.expected
        short = LazyMessages(outbox, lambda rank: outbox[rank].to(self._dtype(outbox[rank])))
        likes = {rank: like.new_empty(like.shape, dtype=self._dtype(like)) for rank, like in expected.items()}
        wires = yield Exchange(short, exchange.senders, likes)
        return LazyMessages(wires, lambda rank: wires[rank].to(expected[rank].dtype))

    def _dtype(self, message: Tensor) -> torch.dtype:
        return self.dtype if message.is_floating_point() else message.dtype
