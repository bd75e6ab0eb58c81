"""Keep passes at other models out of logs, prints and the states of other processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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


@contextmanager
def silence(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, LightningModules log and print nothing, and torchmetrics stay local."""
    replaced = [(module.__dict__, values) for module in modules if (values := _silenced(module))]
    before = [{name: attributes[name] for name in values if name in attributes} for attributes, values in replaced]
    for attributes, values in replaced:
        attributes.update(values)
    try:
        yield
    finally:
        for (attributes, values), own in zip(replaced, before, strict=True):
            for name in values:
                attributes.pop(name, None)
            attributes.update(own)


def _silenced(module: nn.Module) -> dict[str, Any]:
    if hasattr(type(module), "training_step"):  # a LightningModule
        return dict.fromkeys(_SILENT, Silence())
    return dict.fromkeys(_SYNCHRONISE, False) if "dist_sync_on_step" in module.__dict__ else {}  # a torchmetrics metric


def is_metric(module: nn.Module) -> bool:
    """Whether its class is of torchmetrics, or derived from there."""
    return any(kind.__module__.partition(".")[0] == "torchmetrics" for kind in type(module).__mro__)
