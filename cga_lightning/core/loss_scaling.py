"""Half precision: a loss scale of each agent's own, and steps whose gradient has overflowed.

Gradients travel, and algorithms see them, without a scale. An agent whose own gradient is not finite takes part in the
step with zeros, so that an algorithm that remembers gradients does not remember that one; its direction is NaN then,
which makes its scaler skip the optimizer step and lower the scale.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.amp import GradScaler


def scaler_of(precision: object) -> GradScaler | None:
    """The loss scaler of a precision plugin, if it has one."""
    return getattr(precision, "scaler", None)


def unscale(gradient: Tensor, scaler: GradScaler | None) -> Tensor:
    """In place: take the scale of an agent's loss out of its gradient."""
    return gradient if scaler is None else gradient.div_(scaler.scale(gradient.new_ones(())))


def rescale(tensor: Tensor, scaler: GradScaler | None) -> Tensor:
    """A loss, or a direction as the scaler expects to find it before the optimizer step."""
    return tensor if scaler is None else scaler.scale(tensor)


class Overflow:
    """Keeps an own gradient `[d]` that is not finite out of the algorithm, and lets the scaler know.

    Attributes:
        gradient: the gradient, or zeros where it is not finite.
    """

    def __init__(self, gradient: Tensor) -> None:
        self._finite = gradient.isfinite().all()
        self.gradient = torch.where(self._finite, gradient, torch.zeros_like(gradient))

    def mark(self, direction: Tensor) -> Tensor:
        """The direction `[d]`; NaN where the own gradient was not finite."""
        return torch.where(self._finite, direction, torch.full_like(direction, torch.nan))
