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
    from torch import Tensor

__all__ = [
    "HOOKS",
    "attributes_of_lightning",
    "MultiProcessingLauncher",
    "await_requeue",
    "await_sigterm",
    "has_validation",
    "interrupt",
    "batches_as_usual",
    "before_batches",
    "before_means",
    "is_accumulating",
    "is_overridden",
    "layer_sync",
    "means_as_usual",
    "leave_samplers",
    "logged_values",
    "load_train_data_again",
    "new_loader_stage",
    "requeue",
    "returns_to_tuner",
    "terminate",
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


def has_validation(trainer: Trainer) -> bool:
    """Whether a fit has data to validate with."""
    return bool(trainer.fit_loop.epoch_loop.val_loop._data_source.is_defined())


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


def await_sigterm(trainer: Trainer, notice: Callable[[], None]) -> None:
    """Let `notice` handle SIGTERM, in place of the Trainer, which waits for all other processes in its handler.

    Processes that this one has started get the signal too, once. To be called before the Trainer sets its handlers.
    """
    connector: Any = trainer._signal_connector
    told: list[int] = []

    def handle(signal_number: int, _: Any) -> None:
        launcher: Any = trainer.strategy.launcher
        if launcher is not None and not told:
            launcher.kill(signal_number)
        told.append(signal_number)
        notice()

    connector._sigterm_notifier_fn = handle


def terminate(trainer: Trainer) -> None:
    """End the run as the Trainer does once it has got SIGTERM.

    Raises:
        SIGTERMException: that of the Trainer's package.
    """
    trainer._signal_connector.received_sigterm = True
    exceptions = importlib.import_module(f"{tree_of(trainer)}.utilities.exceptions")
    raise exceptions.SIGTERMException


def returns_to_tuner(callback: object) -> bool:
    """Whether a callback belongs to a `Tuner`, which reads what it has found once it has stopped the fit."""
    return bool(getattr(callback, "_early_exit", False))


def is_accumulating(trainer: Trainer) -> bool:
    """Whether no optimizer step followed the batch that has just ended."""
    return trainer.fit_loop._should_accumulate()


def before_batches(trainer: Trainer, act: Callable[[], None]) -> None:
    """Act before every train batch of several processes, in place of a broadcast whether process 0 has got a signal."""
    loop: Any = trainer.fit_loop.epoch_loop
    loop._broadcast_sigterm_tensor = act


def batches_as_usual(trainer: Trainer) -> None:
    """Undo `before_batches`."""
    loop: Any = trainer.fit_loop.epoch_loop
    vars(loop).pop("_broadcast_sigterm_tensor", None)


def before_means(trainer: Trainer, act: Callable[[], None]) -> None:
    """Act before values logged in an evaluation are averaged over its batches: after each loader and at the end."""
    connector: Any = trainer._logger_connector
    average: Callable[[], Any] = connector.update_eval_epoch_metrics

    def acting() -> Any:
        act()
        return average()

    connector.update_eval_epoch_metrics = acting


def means_as_usual(trainer: Trainer) -> None:
    """Undo `before_means`."""
    vars(trainer._logger_connector).pop("update_eval_epoch_metrics", None)


def logged_values(trainer: Trainer) -> dict[str, LoggedValue]:
    """What is about to be averaged when `before_means` acts, by place and name."""
    results: Any = trainer._results
    found = {key: metric for key, metric in results.valid_items() if metric.meta.on_epoch}
    return {
        key: LoggedValue(set(results._forked_name(metric, on_step=False)), metric)
        for key, metric in found.items()
        if not metric.meta.sync.rank_zero_only
    }


class LoggedValue:
    """What was logged for one name during an evaluation.

    Attributes:
        names: under which callbacks find it.
        reduction: "mean", "sum", "max" or "min" of the batches; None for a torchmetrics object, which has its own.
        sync_dist: whether that of all processes was asked for.
    """

    def __init__(self, names: set[str], metric: Any) -> None:
        self.names = names
        self.reduction: str | None = metric.meta.reduce_fx.__name__ if metric.is_tensor else None
        self.sync_dist: bool = metric.meta.sync.should
        self._metric = metric

    @property
    def total(self) -> tuple[Tensor, int]:
        """Of the batches so far, their sum, largest or smallest value, and for a mean the number of samples, else 1."""
        return self._metric.value, int(self._metric.cumulated_batch_size) if self.reduction == "mean" else 1

    def set(self, value: Tensor) -> None:
        """Let this be the value of the epoch."""
        self._metric._computed = value

    def compute(self) -> None:
        """Reduce a torchmetrics object. A collective where there are several processes."""
        self._metric.compute()


def _base_of(module: LightningModule) -> type[LightningModule]:
    return next(kind for kind in type(module).__mro__ if kind.__name__ == "LightningModule")


def attributes_of_lightning(module: LightningModule) -> frozenset[str]:
    """Names of attributes of the module that are Lightning's business, and say nothing of what has been trained."""
    base = _base_of(module)
    return frozenset({*vars(base()), *dir(base)}) - {"_parameters", "_buffers", "_modules", "training"}


def is_overridden(module: LightningModule, hook: str) -> bool:
    """Whether the user has written this hook, in a class or for this object alone."""
    return hook in vars(module) or getattr(type(module), hook) is not getattr(_base_of(module), hook)


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
