"""From when to when the module holds the consensus: a callback that comes before all others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytorch_lightning import Callback

from cga_lightning.lightning import internals, trees
from cga_lightning.lightning.consensus import Consensus
from cga_lightning.lightning.transitions import Next, Transitions

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

    from cga_lightning.lightning.agent_strategy import AgentStrategy


class Phases(Callback):
    """Lets all that is called from `on_validation_start` to `on_validation_end`, and in `on_train_end`, see one model.

    Lightning calls the hooks of a strategy last. So what begins a phase is here, and what ends it in the strategy.

    Args:
        strategy: whose agents are evaluated.
        consensus: what they are evaluated with.
        transitions: tells when not all of them go on with the same.
    """

    def __init__(self, strategy: AgentStrategy, consensus: Consensus, transitions: Transitions) -> None:
        self._strategy = strategy
        self._consensus = consensus
        self._transitions = transitions

    def come_first(self, trainer: Trainer) -> None:
        """Be called before the callbacks of the user, for one run of the Trainer."""
        trees.join(self, trainer)
        trainer.callbacks = [self, *_callbacks(trainer)]  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """No broadcast before each batch: who has got a signal is told along the edges."""
        internals.before_batches(trainer, lambda: self._transitions.next_batch(trainer))

    def _go(self, trainer: Trainer) -> None:
        internals.batches_as_usual(trainer)
        trainer.callbacks = [other for other in _callbacks(trainer) if other is not self]  # type: ignore[attr-defined]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """The run has ended."""
        self._go(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The run has ended."""
        self._go(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The first of a validation. A collective."""
        if self._strategy.agents_differ:
            self._transitions.agree(Next.VALIDATION, trainer)
        self._strategy.begin_validation()

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Callbacks that put other weights in place have done so. A collective at the first batch."""
        self._consensus.follow(pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """They take them back now."""
        self._consensus.unfollow()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """An epoch ends on all agents. A collective."""
        self._transitions.agree(Next.EPOCH_END, trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What is exported here is what the module ends with. A collective."""
        self._transitions.agree(Next.TRAIN_END, trainer)
        if self._strategy.agents_differ:
            self._consensus.enter(pl_module)


def _callbacks(trainer: Trainer) -> list[Callback]:
    return trainer.callbacks  # type: ignore[attr-defined,no-any-return]
