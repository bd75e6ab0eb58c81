"""The trainable parameters of a module, and their gradients in one optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that are exchanged: all that require a gradient now."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def same_objects(first: Sequence[object], second: Sequence[object]) -> bool:
    """Whether both hold the same objects in the same order."""
    return list(map(id, first)) == list(map(id, second))


def to_apply(own: Sequence[Tensor | None], directions: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients for the optimizer: `directions`, but None where there was no own gradient and none came.

    So weight decay and momentum do not move parameters that no agent uses.
    """
    return [
        direction if grad is not None or bool(direction.any()) else None
        for grad, direction in zip(own, directions, strict=True)
    ]


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
