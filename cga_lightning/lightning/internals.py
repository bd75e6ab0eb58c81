"""Every private name of Lightning that this package uses, so that a new release of it breaks one file and its test.

`tests/lightning/test_internals.py` has a test for each of them, and one that finds uses elsewhere.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pytorch_lightning.strategies.launchers import _MultiProcessingLauncher as MultiProcessingLauncher

from cga_lightning.lightning.trees import join, tree_of

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

__all__ = [
    "HOOKS",
    "MultiProcessingLauncher",
    "await_requeue",
    "interrupt",
    "is_accumulating",
    "layer_sync",
    "leave_samplers",
    "load_train_data_again",
    "new_loader_stage",
    "requeue",
    "returns_to_tuner",
    "train_loaders",
    "transfer_one_by_one",
    "transferring_as_usual",
    "use_launcher",
]

HOOKS = {
    "_configure_launcher": "a strategy overrides it: called at the end of Trainer(...)",
    "_wrapping_function": "a launcher overrides it: what runs in every process",
    "_layer_sync": "an attribute of a strategy: set in Trainer(...) before _configure_launcher, by sync_batchnorm=True",
    "_strategy": "an attribute of a launcher: the strategy that it launches",
}
"""Names that Lightning calls or sets on objects of ours."""


def leave_samplers(trainer: Trainer) -> None:
    """Inject no DistributedSampler: an agent's data is its own."""
    trainer._accelerator_connector.use_distributed_sampler = False


def layer_sync(strategy: Any) -> object | None:
    """What sync_batchnorm=True asks the strategy to apply."""
    return strategy._layer_sync  # type: ignore[no-any-return]


def use_launcher(strategy: Any, launcher: MultiProcessingLauncher) -> None:
    """Start the processes of the strategy by this launcher, which must be of the same tree."""
    join(launcher, strategy)
    strategy._launcher = launcher


def new_loader_stage(trainer: Trainer) -> str | None:
    """What the loader is for that Lightning asks its strategy to process: "train", "validation", "test" or None."""
    loop = trainer.fit_loop
    if trainer.training and (loop._combined_loader is None or loop._should_reload_train_dl):
        return "train"
    if trainer.testing:
        return "test"
    return "validation" if trainer.validating or trainer.sanity_checking else None


def train_loaders(trainer: Trainer) -> object:
    """The train loader or loaders, as the user's code has returned them and the strategy has processed them."""
    loader = trainer.fit_loop._combined_loader
    return None if loader is None else loader.iterables


def load_train_data_again(trainer: Trainer) -> None:
    """Ask the user's code for the train loaders when training starts, also if it has been asked before.

    They start at their beginnings: what Lightning has read of the states of loaders is that of one process.
    """
    trainer.fit_loop._combined_loader = None
    trainer.fit_loop._combined_loader_states_to_load = []


def await_requeue(trainer: Trainer, notice: Callable[[int, Any], None] | None) -> bool:
    """Let `notice` handle SLURM's signal to requeue, in place of the Trainer, which saves at once; None: the Trainer.

    To be called before the Trainer sets its handlers.

    Returns:
        Whether the signal is handled at all.
    """
    vars(trainer._signal_connector).pop("_slurm_sigusr_handler_fn", None)
    environment = trainer._accelerator_connector.cluster_environment
    if notice is None or not getattr(environment, "auto_requeue", False):
        return False
    vars(trainer._signal_connector)["_slurm_sigusr_handler_fn"] = notice
    return True


def requeue(trainer: Trainer, signal_number: int) -> None:
    """Save and requeue the job, as the Trainer does in its handler of the signal."""
    connector: Any = trainer._signal_connector
    type(connector)._slurm_sigusr_handler_fn(connector, signal_number, None)


def returns_to_tuner(callback: object) -> bool:
    """Whether a callback belongs to a `Tuner`, which reads what it has found once it has stopped the fit."""
    return bool(getattr(callback, "_early_exit", False))


def is_accumulating(trainer: Trainer) -> bool:
    """Whether no optimizer step followed the batch that has just ended."""
    return trainer.fit_loop._should_accumulate()


def transfer_one_by_one(module: LightningModule) -> None:
    """Let the user's on_before_batch_transfer see one agent's batch at a time, where a batch is a list of theirs."""
    hook: Callable[..., Any] = type(module)._on_before_batch_transfer

    def each(batch: Any, dataloader_idx: int = 0) -> Any:
        if not module.trainer.training:
            return hook(module, batch, dataloader_idx)
        return [hook(module, part, dataloader_idx) for part in batch]

    object.__setattr__(module, "_on_before_batch_transfer", each)


def transferring_as_usual(module: LightningModule) -> None:
    """Undo `transfer_one_by_one`."""
    vars(module).pop("_on_before_batch_transfer", None)


def interrupt(trainer: Trainer, exception: BaseException) -> None:
    """Tell callbacks and the strategy of an exception, as the Trainer does in the main process."""
    call = importlib.import_module(f"{tree_of(trainer)}.trainer.call")
    call._interrupt(trainer, exception)
