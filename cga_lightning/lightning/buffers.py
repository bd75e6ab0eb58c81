"""Buffers that agents cannot average, since their shape depends on the data of each."""

from __future__ import annotations

import torch
from torch import nn


class BufferShapes:
    """The shapes of a module's buffers, which stay what they are while it trains.

    An empty buffer may take its shape once, as buffers do that are initialized by the first batch.

    Args:
        module: the user's. Buffers that it gets later are not looked at.
    """

    def __init__(self, module: nn.Module) -> None:
        self._buffers = [
            (f"{prefix}.{name}".strip("."), owner, name)
            for prefix, owner in module.named_modules()
            for name in owner._buffers
        ]
        self._shapes = self._found()

    def _found(self) -> dict[str, torch.Size]:
        buffers = ((label, owner._buffers.get(name)) for label, owner, name in self._buffers)
        return {label: buffer.shape for label, buffer in buffers if buffer is not None}

    def check(self) -> None:
        """To be called after every training step of every agent.

        Raises:
            RuntimeError: names a buffer that has changed its shape, or has another one on an agent of this process.
        """
        for label, shape in self._found().items():
            known = self._shapes.get(label, shape)
            if shape != known and 0 not in known:
                raise RuntimeError(
                    f"The shape of the buffer {label!r} depends on the data: it was {tuple(known)}, and after a "
                    f"training step it is {tuple(shape)}. {ADVICE}"
                )
            self._shapes[label] = shape


ADVICE = (
    "Agents average their buffers, so that each needs one shape, alike on all agents. Give the buffer a fixed size, or "
    "keep such values in a plain attribute."
)
