"""The accumulated micro-batches of one optimizer step: enough to evaluate its gradient anywhere in parameter space."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cga_lightning.core.layout import FlatLayout
from cga_lightning.passes.random_state import RandomState
from cga_lightning.passes.sandbox import attributes_copied

Backward = Callable[..., None]
"""Runs forward and backward on one micro-batch of the user's module, outside of Lightning's loop."""


class MicroBatches:
    """The micro-batches that one step accumulates, each with the random state that its own pass started from."""

    def __init__(self) -> None:
        self._micro_batches: list[tuple[tuple[Any, ...], RandomState]] = []
        self._buffers: list[tuple[Tensor, list[Tensor]]] = []
        self._used = 0

    def __len__(self) -> int:
        return len(self._micro_batches)

    def clear(self) -> None:
        """Forget the micro-batches: a new step begins, and the gradients handed out may be overwritten."""
        self._micro_batches.clear()
        self._used = 0

    def append(self, *arguments: Any, start: RandomState | None = None) -> None:
        """Remember the arguments of a training step that is about to run, and the random state, now unless given."""
        self._micro_batches.append((arguments, RandomState.capture() if start is None else start))

    def gradient(
        self,
        module: nn.Module,
        parameters: Sequence[nn.Parameter],
        layout: FlatLayout,
        backward: Backward,
        at: Tensor,
        now: RandomState | None = None,
    ) -> Tensor:
        """The gradient `[d]` of their loss at the parameters `at` `[d]`, leaving no trace in `module`.

        The tensor is the caller's until `clear`.

        Args:
            module: the user's, which runs.
            parameters: those that point at `at` meanwhile.
            layout: where they lie in it.
            backward: one pass of one micro-batch.
            at: where to evaluate the gradient.
            now: the random state, if it is known.
        """
        with moved(parameters, layout.views(at)), attributes_copied(module), torch.enable_grad():
            self._run(backward, RandomState.capture() if now is None else now)
            buffer, views = self._buffer(layout)
            return layout.write([parameter.grad for parameter in parameters], buffer, views)

    def _run(self, backward: Backward, before: RandomState) -> None:
        """The passes, each with the random numbers of its own pass; leaves the random state `before`."""
        since = before
        try:
            for arguments, start in self._micro_batches:
                start.restore(since)
                since = start
                backward(*arguments)
        finally:
            before.restore(since)

    def _buffer(self, layout: FlatLayout) -> tuple[Tensor, list[Tensor]]:
        """The next buffer of this step and its views; made once: fresh memory costs more than the copy into it."""
        if self._used == len(self._buffers) or self._buffers[self._used][0].numel() != layout.numel:
            buffer = layout.zeros()
            self._buffers[self._used :] = [(buffer, layout.views(buffer))]
        self._used += 1
        return self._buffers[self._used - 1]


@contextmanager
def moved(parameters: Sequence[nn.Parameter], data: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the parameters point at `data` and have no gradient yet; not while a graph of theirs is alive."""
    originals = [(p.data, p.grad) for p in parameters]
    _point(parameters, data, [None] * len(originals))
    try:
        yield
    finally:
        _point(parameters, *zip(*originals, strict=True))


def _point(parameters: Sequence[nn.Parameter], data: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    for parameter, value, grad in zip(parameters, data, grads, strict=True):
        parameter.grad = None
        parameter.data = value
        parameter.grad = grad
