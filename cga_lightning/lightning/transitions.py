"""What comes next in a fit is the same for all agents, or none of them would get an answer from the others."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING

from cga_lightning.lightning.peers import Peers
from cga_lightning.names import listed

if TYPE_CHECKING:
    from pytorch_lightning import Trainer


class Next(IntEnum):
    """What an agent goes on with."""

    BATCH = 1
    LOADERS = 2
    VALIDATION = 3
    EPOCH_END = 4
    TRAIN_END = 5


_WHAT = {
    Next.BATCH: "the next batch",
    Next.LOADERS: "new data loaders",
    Next.VALIDATION: "a validation",
    Next.EPOCH_END: "the end of the epoch",
    Next.TRAIN_END: "the end of training",
}
_STOPPING, _SIGNALED = 8, 16


class Transitions:
    """Compares what all agents go on with, one small number of each.

    Args:
        peers: the processes of the run.
        step: the number of the step that this process is at.
    """

    def __init__(self, peers: Peers, step: Callable[[], int]) -> None:
        self._peers = peers
        self._step = step

    def agree(self, following: Next, trainer: Trainer) -> bool:
        """All go on with the same. A collective, and the first one of each transition.

        Returns:
            Whether agent 0 has got a signal to terminate.

        Raises:
            RuntimeError: names the agents that go on with something else, because they alone shall stop for instance.
        """
        if self._peers.left:
            return False
        number = following + _STOPPING * trainer.should_stop + _SIGNALED * trainer.received_sigterm
        numbers = self._peers.numbers(number, trainer.strategy.root_device)
        nexts = [Next(number % _STOPPING) for number in numbers]
        if len({*nexts}) > 1:
            stopping = [rank for rank, number in enumerate(numbers) if number & _STOPPING]
            raise RuntimeError(self._difference(nexts, stopping))
        return bool(numbers[0] & _SIGNALED)

    def _difference(self, nexts: list[Next], stopping: list[int]) -> str:
        ranks = {one: [rank for rank, n in enumerate(nexts) if n is one] for one in nexts}
        found = [f"{_WHAT[one]} on agent {listed(ranks[one])}" for one in ranks]
        where = f"After step {self._step()} comes {', but '.join(found)}"
        if 0 < len(stopping) < len(nexts):
            return (
                f"{where}: trainer.should_stop was set on agent {listed(stopping)} alone. Agents stop together: let "
                "EarlyStopping decide, or trainer.strategy.reduce_boolean_decision(...), called on every agent."
            )
        return f"{where}. Give all agents the same Trainer settings, and the same hooks and callbacks."
