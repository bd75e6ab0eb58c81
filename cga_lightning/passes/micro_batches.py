"""The accumulated micro-batches of one optimizer step: enough to evaluate its gradient anywhere in parameter space."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cga_lightning.copy_on_write import lazily_copied
from cga_lightning.core.layout import FlatLayout
from cga_lightning.passes.random_state import RandomState
from cga_lightning.passes.silence import silence
from cga_lightning.passes.snapshot import LargeContainers, Snapshot

Backward = Callable[..., None]
"""Runs forward and backward on one micro-batch of the user's module, outside of Lightning's loop."""


class MicroBatch(NamedTuple):
    """What the own pass on a micro-batch started from.

    Attributes:
        arguments: those of the training step.
        random_state: of the generators.
        before: the contents of the module and of the arguments.
    """

    arguments: tuple[Any, ...]
    random_state: RandomState
    before: Snapshot


class MicroBatches:
    """The micro-batches that one step accumulates; their gradient can be evaluated at other parameters.

    Args:
        parameters: those that are trained.
        snapshot: the contents of the user's module and of other objects, now.
        large: which containers it leaves alone.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], snapshot: Callable[..., Snapshot], large: LargeContainers
    ) -> None:
        self._parameters = parameters
        self._snapshot = snapshot
        self._large = large
        self._micro_batches: list[MicroBatch] = []
        self._after: Snapshot | None = None
        self._buffers: list[tuple[Tensor, list[Tensor]]] = []
        self._used = 0

    def __len__(self) -> int:
        return len(self._micro_batches)

    def clear(self) -> None:
        """Forget the micro-batches: a new step begins, and the gradients handed out may be overwritten."""
        self._micro_batches.clear()
        self._after = None
        self._used = 0

    def learn(self) -> None:
        """The own pass on the last micro-batch is over: see which large containers it has changed inside."""
        self._large.learn(self._micro_batches[-1].before)

    def look_again(self) -> None:
        """Code of the user has run since the last gradient."""
        self._after = None

    def append(self, *arguments: Any, start: RandomState | None = None) -> None:
        """Remember what a training step that is about to run starts from; the random state is the one now by default.

        Args:
            arguments: of the training step.
            start: the random state, if it is known.
        """
        random_state = RandomState.capture() if start is None else start
        self._micro_batches.append(MicroBatch(arguments, random_state, self._snapshot(arguments)))

    def gradient(self, layout: FlatLayout, backward: Backward, at: Tensor, now: RandomState | None = None) -> Tensor:
        """The gradient `[d]` of their loss at the parameters `at` `[d]`, leaving no trace in the module.

        The passes start from what their own passes started from. What they write into parameters is lost, and `at`
        stays as it is. The tensor is the caller's until `clear`.

        Args:
            layout: where the parameters lie in `at`.
            backward: one pass of one micro-batch.
            at: where to evaluate the gradient.
            now: the random state, if it is known.
        """
        views = layout.views(lazily_copied(at))
        if self._after is None:
            self._after = self._snapshot([micro_batch.arguments for micro_batch in self._micro_batches])
        with moved(self._parameters, views), torch.enable_grad():
            self._run(backward, self._after, RandomState.capture() if now is None else now)
            buffer, views = self._buffer(layout)
            return layout.write([parameter.grad for parameter in self._parameters], buffer, views)

    def _run(self, backward: Backward, after: Snapshot, now: RandomState) -> None:
        """The passes; leaves the contents `after` and the random state `now`."""
        since = now
        try:
            for arguments, start, before in self._micro_batches:
                before.restore()
                start.restore(since)
                since = start
                with silence(before.modules):
                    backward(*arguments)
        finally:
            after.restore()
            now.restore(since)

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
