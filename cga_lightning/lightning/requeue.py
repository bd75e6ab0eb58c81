"""SLURM's signal before the time limit: all agents save together, between two steps, and the job is requeued."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pytorch_lightning import Callback

from cga_lightning.lightning import internals, trees
from cga_lightning.lightning.peers import Peers

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


class RequeueSignal(Callback):
    """Takes note of the signal when it comes and answers it at the end of the step.

    The signal reaches the processes at different moments, each in the middle of whatever it does, where it cannot wait
    for the others.

    Args:
        peers: the processes of the run, of which any may get the signal.
    """

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._signal = 0
        self._received = 0
        self._answered = 0

    def watch(self, trainer: Trainer) -> None:
        """Take over from the Trainer, before it sets its handlers; only in a job of SLURM that asks to be requeued."""
        if internals.await_requeue(trainer, self._notice):
            trees.join(self, trainer)
            callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
            if self not in callbacks:
                callbacks.append(self)

    def _notice(self, signal_number: int, _: Any) -> None:
        self._signal = signal_number
        self._received += 1

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Nothing is on its way between agents once a step is over."""
        if not internals.is_accumulating(trainer):
            self._answer(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """It has come after the last step, as in the validation that follows."""
        self._answer(trainer)

    def _answer(self, trainer: Trainer) -> None:
        """A collective. The same signal may reach another process later, where it counts as answered."""
        received = torch.tensor([self._received, self._signal], device=trainer.strategy.root_device)
        received, signal_number = self._peers.largest(received).tolist()
        if received > self._answered:
            self._answered = received
            internals.requeue(trainer, signal_number)
