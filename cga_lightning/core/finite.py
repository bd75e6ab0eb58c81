"""Notice gradients that are not finite, without making the host wait for a GPU."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from cga_lightning.copies import Arriving

_log = logging.getLogger(__name__)


class FiniteCheck:
    """Looks at the gradients of one agent and warns at the first that is not finite.

    On a GPU the answer is read at a later step, when it has arrived.

    Attributes:
        count: how many gradients were not finite, of those whose answer has arrived.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.count = 0
        self._unread: deque[tuple[int, Arriving]] = deque()

    def look_at(self, parts: Sequence[Tensor], step: int) -> None:
        """Look at the gradient of this step, in parts of any shape, and at the answers that have arrived since."""
        if not len(parts):
            return
        wide = torch.promote_types(parts[0].dtype, torch.float32)  # no overflow of 16 bits
        sums = [part.sum(dtype=wide) for part in parts]  # the fastest reduction that shows it
        self._unread.append((step, Arriving(sums[0] if len(sums) == 1 else torch.stack(sums).sum())))
        while self._unread and self._unread[0][1].is_there:
            self._read(*self._unread.popleft())

    def _read(self, step: int, total: Arriving) -> None:
        if math.isfinite(*total.numbers()):
            return
        self.count += 1
        if self.count == 1:
            _log.warning(
                f"The gradient of agent {self.rank} is not finite at step {step}. The optimizer carries that into its "
                "model, and mixing into those of its neighbors. Look at its data and its loss, or lower the learning "
                "rate; Trainer(detect_anomaly=True) finds the operation."
            )
