"""SLURM's signal before the time limit: all agents save together, between two steps, and the job is requeued."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from pytorch_lightning import Callback

from cga_lightning.lightning import internals, trees
from cga_lightning.lightning.peers import Peers
from cga_lightning.lightning.transitions import Transitions

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


class RequeueSignal(Callback):
    """Takes note of the signal when it comes and answers it at the end of the step.

    The signal reaches the processes at different moments, each in the middle of whatever it does, where it cannot wait
    for the others.

    Args:
        transitions: tells all agents of the signal, of which any may get it.
        peers: the processes of the run.
    """

    def __init__(self, transitions: Transitions, peers: Peers) -> None:
        self._transitions = transitions
        self._signal = transitions.requeue
        self._peers = peers
        self._signal_number: int = signal.SIGUSR1  # as far as this process knows

    def watch(self, trainer: Trainer) -> None:
        """Take over from the Trainer, before it sets its handlers; only in a job of SLURM that asks to be requeued."""
        if internals.await_requeue(trainer, self._notice):
            trees.join(self, trainer)
            callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
            if self not in callbacks:
                callbacks.append(self)

    def _notice(self, signal_number: int, _: Any) -> None:
        self._signal_number = signal_number
        self._signal.received += 1

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Nothing is on its way between agents once a step is over."""
        if not internals.is_accumulating(trainer) and self._transitions.due(self._signal):
            self._answer(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """It has come after the last step, as in the validation that follows. A collective."""
        if any(self._peers.gather(self._signal.pending, "agreement on a signal")):
            self._answer(trainer)

    def _answer(self, trainer: Trainer) -> None:
        """The same signal may reach another process later, where it counts as answered."""
        self._signal.answer()
        internals.requeue(trainer, self._signal_number)
