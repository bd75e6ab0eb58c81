"""What runs, but not well, is told once, with what to use instead."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch.optim import Optimizer

from cga_lightning.core.algorithm import Algorithm

_log = logging.getLogger(__name__)


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
