"""Keep passes at other models out of logs, prints and the states of other processes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

_SILENT = ("log", "log_dict", "print")
_SYNCHRONISE = ("dist_sync_on_step", "sync_on_compute", "_to_sync")


class Silence:
    """Stands in for a logger, its experiment, and whatever else code may reach from there: takes all, does nothing."""

    def __getattr__(self, name: str) -> Silence:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *_: Any, **__: Any) -> Silence:
        """Any method."""
        return self

    def __getitem__(self, _: Any) -> Silence:
        return self

    def __setitem__(self, _: Any, __: Any) -> None:
        pass


def silence(modules: Iterable[nn.Module]) -> None:
    """Until their attributes are restored, LightningModules log and print nothing, and torchmetrics stay local."""
    for module in modules:
        if hasattr(type(module), "training_step"):  # a LightningModule
            module.__dict__.update(dict.fromkeys(_SILENT, Silence()))
        elif "dist_sync_on_step" in module.__dict__:  # a torchmetrics metric
            module.__dict__.update(dict.fromkeys(_SYNCHRONISE, False))
