"""Any algorithm with a shorter float on the wire."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from cga_lightning.algorithms.wrapper import Wrapper
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
        return self._rounded(self.algorithm.step(agent))

    def after_step(self, agent: Agent) -> Step:
        """What the algorithm does after the optimizer step, with rounded messages."""
        return self._rounded(self.algorithm.after_step(agent))

    def _rounded(self, running: Step) -> Step:
        inbox: Messages | None = None
        while True:
            try:
                outbox, senders, like = Exchange.of(next(running) if inbox is None else running.send(inbox))
            except StopIteration:
                return
            like_short = None if like is None else self._short(like)
            short = LazyMessages(outbox, partial(self._sent, outbox), like_short)
            wires = yield Exchange(short, senders, like_short)
            inbox = LazyMessages(wires, partial(self._received, wires, like))

    def _sent(self, outbox: Messages, rank: int) -> Tensor:
        return self._short(outbox[rank])

    @staticmethod
    def _received(wires: Messages, like: Tensor | None, rank: int) -> Tensor:
        return wires[rank] if like is None else wires[rank].to(like.dtype)

    def _short(self, message: Tensor) -> Tensor:
        return message.to(self.dtype) if message.is_floating_point() else message
