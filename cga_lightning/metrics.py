"""How far apart the agents are, how much the projection has to do, and what they send."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cga_lightning._lightning import InTreeOfUse

if TYPE_CHECKING:
    from pytorch_lightning import Callback, LightningModule, Trainer

    class _Base(InTreeOfUse, Callback): ...
else:
    _Base = InTreeOfUse


class Monitor(_Base):
    """Logs the state of the network of agents every few steps.

    Logged values: `consensus_distance`, the root mean square over agents of |x^j - mean|; `gradient_norm`, the mean
    norm of the direction of the last step (near 0 for long: a Pareto-stationary point, see `CGA`);
    `non_finite_gradients`, how many own gradients were not finite so far; what the algorithm reports, with CGA
    `conflicts`, the share of cross-gradients whose constraint was active in the last projection, and `non_finite`, the
    share of projections that had to leave out a row; `traffic/<exchange>`, the bytes that the agents of this process
    have sent so far.

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
        if trainer.global_step % self.every_n_steps or trainer.fit_loop._should_accumulate():
            return
        strategy: Any = trainer.strategy
        if not hasattr(strategy, "consensus"):
            raise TypeError(
                f"ConsensusMonitor needs DecentralizedStrategy or SimulatedStrategy, found {type(strategy).__name__}."
            )
        options: dict[str, Any] = {"on_step": True, "on_epoch": False, "batch_size": 1}
        pl_module.log("consensus_distance", strategy.consensus_distance(), prog_bar=self.prog_bar, **options)
        for name, value in strategy.diagnostics().items():
            pl_module.log(name, value, **options)
        for name, sent in strategy.traffic.items():
            pl_module.log(f"traffic/{name}", float(sent), **options)
