"""The trainable parameters of a module, and their gradients in one optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cga_lightning.copies import Arriving


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that are exchanged: all that require a gradient now."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def same_objects(first: Sequence[object], second: Sequence[object]) -> bool:
    """Whether both hold the same objects in the same order."""
    return list(map(id, first)) == list(map(id, second))


class Applied:
    """Which directions an optimizer gets: all but those that are zero where the agent has no gradient of its own.

    So weight decay and momentum do not move parameters that no agent uses.

    Args:
        late: go by what a device has answered for that parameter the last time, and wait for the first answer only.
            None: where the directions are not on the CPU.
    """

    def __init__(self, late: bool | None = None) -> None:
        self._late = late
        self._asked: dict[int, tuple[Arriving, int]] = {}

    def of(self, own: Sequence[Tensor | None], directions: Sequence[Tensor]) -> list[Tensor | None]:
        """The gradients for the optimizer: `directions`, or None."""
        lacking = [i for i, grad in enumerate(own) if grad is None]
        used = self._used(lacking, directions) if lacking else {}
        return [direction if used.get(i, True) else None for i, direction in enumerate(directions)]

    def _used(self, lacking: Sequence[int], directions: Sequence[Tensor]) -> dict[int, bool]:
        answers = Arriving(torch.stack([directions[i].any() for i in lacking]))
        asked = {i: (answers, place) for place, i in enumerate(lacking)}
        late = not directions[0].is_cpu if self._late is None else self._late
        sources = asked | self._asked if late else asked
        self._asked |= asked
        return {i: bool(sources[i][0].numbers()[sources[i][1]]) for i in lacking}


def set_gradients(parameters: Sequence[nn.Parameter], grads: Sequence[Tensor | None]) -> None:
    """Point every parameter's `.grad` at its entry of `grads`."""
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad


class SparseGradients:
    """Which parameters have sparse gradients, as those of Embedding(sparse=True): some optimizers take no others.

    Flat vectors are dense, and so is what travels.
    """

    def __init__(self) -> None:
        self._dims: dict[int, int] = {}

    def look_at(self, grads: Sequence[Tensor | None]) -> None:
        """Those that the backward pass has left."""
        self._dims |= {i: grad.sparse_dim() for i, grad in enumerate(grads) if grad is not None and grad.is_sparse}

    def again(self, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The same gradients, sparse where they have been, with the rows that are not zero."""
        result = list(grads)
        for i, dim in self._dims.items():
            grad = result[i]
            result[i] = grad if grad is None or grad.is_sparse else grad.to_sparse(dim)
        return result


class StepOnce:
    """The closure that an optimizer gets; it must call it exactly once."""

    def __init__(self, closure: Callable[[], Any]) -> None:
        self._closure = closure
        self._calls = 0

    def __call__(self) -> Any:
        """Call the closure; returns the loss."""
        self._calls += 1
        self.check()
        return self._closure()

    def check(self) -> None:
        """Raise unless the closure was called once."""
        if self._calls != 1:
            raise RuntimeError(
                f"The optimizer called its closure {self._calls} times in one step, but a decentralized step "
                "exchanges gradients exactly once. Use an optimizer that evaluates its closure once, such as "
                "torch.optim.SGD or torch.optim.AdamW."
            )
