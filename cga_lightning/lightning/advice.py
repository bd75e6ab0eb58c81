"""What runs, but not well, is told once, with what to use instead."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.optim import Optimizer

from cga_lightning.core.algorithm import Algorithm

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

_log = logging.getLogger(__name__)

LINEAR = (torch.optim.SGD,)
"""Optimizers whose mean step, over agents, is their step along the mean gradient."""


def advise(algorithm: Algorithm, optimizers: Sequence[Optimizer], trainer: Trainer) -> None:
    """On an optimizer that does not suit the algorithm."""
    advise_on_momentum(algorithm, optimizers)
    advise_on_averaged_steps(algorithm, optimizers, trainer)


def advise_on_momentum(algorithm: Algorithm, optimizers: Sequence[Optimizer]) -> None:
    """Tell that the momentum of the optimizer adds up with what the algorithm remembers."""
    groups = [group for optimizer in optimizers for group in getattr(optimizer, "param_groups", ())]
    momentum = max((group.get("momentum", 0.0) for group in groups), default=0.0)
    if momentum and not algorithm.takes_momentum:
        _log.warning(
            f"{algorithm!r} does not go with the momentum of the optimizer, which is {momentum}: the agents drift "
            "apart or diverge. Use torch.optim.SGD(lr) without momentum, and QuasiGlobalMomentum(algorithm, mu=0) or "
            "QuasiGlobalMomentum(algorithm, mu=0, beta=0.95) around the algorithm."
        )


def advise_on_averaged_steps(algorithm: Algorithm, optimizers: Sequence[Optimizer], trainer: Trainer) -> None:
    """Tell whoever averages models, and nothing else, after steps that are not linear in the gradient."""
    others = [type(optimizer).__name__ for optimizer in optimizers if not isinstance(optimizer, LINEAR)]
    clipping = [f"Trainer(gradient_clip_val={trainer.gradient_clip_val})"] * bool(trainer.gradient_clip_val)
    if algorithm.averages_models_only and others + clipping:
        _log.warning(
            f"{(others + clipping)[0]} does not step linearly in the gradient, and {type(algorithm).__name__} averages "
            "models only after each agent's own steps. Where the agents' data differ, the mean of such steps is not a "
            'step along the mean gradient, and agents learn little from each other. Use strategy="relay", which is '
            "RelaySGD(hops=3, gradients=True), or torch.optim.SGD without clipping."
        )
