"""What cannot be trained by agents is refused at the start."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


def refuse_layer_sync(layer_sync: object | None) -> None:
    """Refuse batch statistics over all agents."""
    if layer_sync is not None:
        raise ValueError(
            "Trainer(sync_batchnorm=True) would average batch statistics over all agents in every pass, also in "
            "those with a neighbor's model. Remove it, or use GroupNorm instead of BatchNorm."
        )


def refuse_module(module: LightningModule) -> None:
    """Refuse a module whose gradient cannot be evaluated at another model."""
    if not module.automatic_optimization:
        raise ValueError(
            f"{type(module).__name__} uses manual optimization (automatic_optimization=False), so its gradient cannot "
            "be evaluated at a neighbor's model. Return the loss from training_step and let Lightning optimize."
        )
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise ValueError(
            f"{type(module).__name__}.training_step(dataloader_iter) draws its batches itself, so it cannot be run "
            "again with a neighbor's model. Use training_step(batch, batch_idx)."
        )


def refuse_interactive(launcher: Any) -> None:
    """Refuse what runs the script again where there is no script, as in a notebook."""
    interactive = hasattr(sys, "ps1") or bool(sys.flags.interactive)
    if interactive and launcher is not None and not launcher.is_interactive_compatible:
        raise ValueError(
            "Start methods other than fork run the program again in every process, so they are not compatible with an "
            "interactive environment such as a notebook. Use Trainer(strategy='cga_notebook') or another name that "
            "ends in _notebook, DecentralizedStrategy(start_method='fork'), or SimulatedStrategy."
        )


def refuse_uninitialized(module: LightningModule) -> None:
    """Refuse tensors whose shapes are not known before the first batch."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    lazy = [name for name, tensor in tensors if is_lazy(tensor)]
    if lazy:
        raise ValueError(
            f"{type(module).__name__}.{lazy[0]} has no shape before the first batch (torch.nn.Lazy...), but agents "
            "exchange their models from the first step on. Give it its shape in configure_model(), by one pass with "
            "an input like those of the data: self.net(torch.zeros(1, features))."
        )


def refuse_optimizers(optimizers: Sequence[Optimizer]) -> None:
    """Refuse optimizers that evaluate the loss more than once."""
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in optimizers):
        raise ValueError(
            "LBFGS evaluates the loss several times per step, but a decentralized step exchanges gradients "
            "once. Use a first-order optimizer such as torch.optim.SGD or torch.optim.AdamW."
        )


def refuse_sharded(module: LightningModule) -> None:
    """Refuse a model of which a process has a part only."""
    sharded = [name for name, parameter in module.named_parameters() if hasattr(parameter, "device_mesh")]
    sharded += [name for name, child in module.named_modules() if "FullySharded" in type(child).__name__]
    if sharded:
        raise ValueError(
            f"{sharded[0]} is sharded over processes (FSDP or tensor parallelism), but every agent needs its whole "
            "model. Leave the module as it is in configure_model()."
        )


def refuse_other_strategies(callback: str, strategy: object) -> None:
    """Refuse a strategy without agents, for a callback of that name which asks them."""
    if not hasattr(strategy, "network_diagnostics"):
        raise TypeError(
            f"{callback} needs DecentralizedStrategy or SimulatedStrategy, found {type(strategy).__name__}."
        )


def refuse_averages(trainer: Trainer) -> None:
    """Refuse callbacks that average the module's weights: they would see those of agent 0, and give them to all."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if {"StochasticWeightAveraging", "WeightAveraging"} & {kind.__name__ for kind in type(callback).__mro__}:
            raise ValueError(
                f"{type(callback).__name__} keeps one average of the weights, but a simulation has one module for "
                "several agents. Remove it, or use DecentralizedStrategy."
            )


def refuse_late_closure(micro_batches: int, accumulated: int) -> None:
    """Refuse one micro-batch more than a step accumulates."""
    if micro_batches >= accumulated:
        raise RuntimeError(
            "The closure ran without an optimizer step, so the neighbors' gradients would be stale: the "
            "LightningModule's optimizer_step() must call optimizer.step(closure=...) each time it is called. To "
            "step less often use Trainer(accumulate_grad_batches=...)."
        )
