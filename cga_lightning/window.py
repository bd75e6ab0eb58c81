"""What an agent has seen for one optimizer step: enough to evaluate its gradient anywhere in parameter space."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cga_lightning.flat import FlatLayout
from cga_lightning.sandbox import RandomState, sandbox

Backward = Callable[..., None]
"""Runs forward and backward on one micro-batch of the user's module, outside of Lightning's loop."""


class Window:
    """The micro-batches of one step, each with the random state that its own pass started from."""

    def __init__(self) -> None:
        self._micro_batches: list[tuple[tuple[Any, ...], RandomState]] = []
        self._buffers: list[Tensor] = []
        self._used = 0

    def __len__(self) -> int:
        return len(self._micro_batches)

    def clear(self) -> None:
        """Forget the micro-batches: a new step begins, and the gradients handed out may be overwritten."""
        self._micro_batches.clear()
        self._used = 0

    def append(self, *arguments: Any) -> None:
        """Remember the arguments of a training step that is about to run, and the random state now."""
        self._micro_batches.append((arguments, RandomState.capture()))

    def gradient(
        self,
        module: nn.Module,
        parameters: Sequence[nn.Parameter],
        layout: FlatLayout,
        backward: Backward,
        at: Tensor,
    ) -> Tensor:
        """The gradient `[d]` of the window's loss at the parameters `at` `[d]`, leaving no trace in `module`.

        The tensor is the caller's until `clear`.
        """
        with moved(parameters, layout.views(at)), sandbox(module), torch.enable_grad():
            for arguments, state in self._micro_batches:
                state.restore()
                backward(*arguments)
            return layout.write([parameter.grad for parameter in parameters], out=self._buffer(layout))

    def _buffer(self, layout: FlatLayout) -> Tensor:
        """The next buffer of this step; allocated once, since fresh memory costs more than the copy into it."""
        if self._used == len(self._buffers) or self._buffers[self._used].numel() != layout.numel:
            self._buffers[self._used :] = [layout.zeros()]
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


class ForbidCollectives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, a collective of `torch.distributed` raises: agents run a training step for different models each."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refuse operators of c10d, run all others."""
        if "c10d" in func.namespace:  # also _c10d_functional
            raise_collective(func.overloadpacket.__name__.strip("_"))
        return func(*args, **(kwargs or {}))


def raise_collective(name: str) -> None:
    """Raise the error for a collective inside training_step."""
    raise RuntimeError(
        f"training_step called the collective {name!r}. Every agent also runs its training_step with the models of its "
        "neighbors, so collectives inside it would mix up agents or hang. Move it to on_train_batch_end, or use "
        "self.log(..., sync_dist=True)."
    )
