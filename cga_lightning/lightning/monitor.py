"""How far apart the agents are, how much the projection has to do, and what they send."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytorch_lightning import Callback

from cga_lightning.lightning.internals import is_accumulating
from cga_lightning.lightning.refusals import refuse_other_strategies

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


class ConsensusMonitor(Callback):
    """Logs the state of the network of agents every few steps, alike in processes and in a simulation.

    Logged values, each the mean over all agents of the run that have it: `gradient_norm`, the norm of the direction of
    the last step (near 0 for long: a Pareto-stationary point, see `CGA`); `non_finite_gradients`, how many own
    gradients were not finite so far; what the algorithm reports, with CGA `conflicts`, the share of cross-gradients
    whose constraint was active in the last projection, and `non_finite`, the share of projections that had to leave out
    a row; `traffic/<exchange>`, the bytes that an agent has sent so far. And `consensus_distance`, the root mean square
    over agents of |x^j - mean|.

    Args:
        every_n_steps: averaging all models costs an all-reduce of model size, so not at every step.
        prog_bar: show the consensus distance in the progress bar.
    """

    def __init__(self, every_n_steps: int = 50, prog_bar: bool = False) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}.")
        self.every_n_steps = every_n_steps
        self.prog_bar = prog_bar

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log when the step is due. A collective: every process comes here at the same steps."""
        if trainer.global_step % self.every_n_steps or is_accumulating(trainer):
            return
        strategy: Any = trainer.strategy
        refuse_other_strategies("ConsensusMonitor", strategy)
        options: dict[str, Any] = {"on_step": True, "on_epoch": False, "batch_size": 1}
        pl_module.log("consensus_distance", strategy.consensus_distance(), prog_bar=self.prog_bar, **options)
        for name, value in strategy.network_diagnostics().items():
            pl_module.log(name, value, **options)
