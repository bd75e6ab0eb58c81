"""A memory of what compression loses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cga_lightning.compression.base import Compressor, Layout


class ErrorFeedback(Compressor):
    """Sends later what compression loses: `p = x + e`, send `C(p)`, `e = p - C(p)` (Karimireddy et al. 2019).

    Give every directed edge its own. What is not finite is forgotten, so that one overflow does not stay in the memory
    for ever.

    Args:
        compressor: the one to wrap.
    """

    def __init__(self, compressor: Compressor) -> None:
        self.compressor = compressor
        self.memory: Tensor | None = None

    def __repr__(self) -> str:
        return f"ErrorFeedback({self.compressor!r})"

    def fork(self, key: int) -> ErrorFeedback:
        """Return an equal one with an empty memory, around a fork of the wrapped compressor."""
        return ErrorFeedback(self.compressor.fork(key))

    def wire_size(self, layout: Layout) -> int:
        """Bytes of every message: as many as the wrapped compressor takes."""
        return self.compressor.wire_size(layout)

    def compress(self, x: Tensor, layout: Layout) -> Tensor:
        """Return the message for x and the memory, and remember what it loses."""
        self.memory = torch.zeros_like(x) if self.memory is None else self.memory.to(x.device)
        return self.compressor.compress_with_memory_(self.memory, x, layout)

    def decompress(self, wire: Tensor, layout: Layout) -> Tensor:
        """Return `[d]` as the wrapped compressor does; the memory is the sender's alone."""
        return self.compressor.decompress(wire, layout)

    def state_dict(self) -> dict[str, Any]:
        """The memory `[d]` (None before the first message; not a copy) and the wrapped compressor's state."""
        return {"memory": self.memory, "compressor": self.compressor.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the memory, not copied, and the wrapped compressor's state."""
        self.memory = state["memory"]
        self.compressor.load_state_dict(state["compressor"])
