"""Run a module's own code elsewhere in parameter space and leave no trace of it.

The module's attributes are put aside and replaced by copies while the block runs. Parameters stay the same objects, so
optimizers, tied weights, fused RNN weights and hooks keep working. Not covered: files, printed text, globals, iterators
held by the module, and state inside objects that are neither tensors, arrays, modules nor plain containers.
"""

from __future__ import annotations

import copy
import operator
import random
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# What every module has: parameters, submodules and hooks stay the same objects, in copied dictionaries.
_REGISTRIES = frozenset(name for name, value in vars(nn.Module()).items() if isinstance(value, dict | set)) - {
    "_buffers"
}
_SYNCHRONISE = ("dist_sync_on_step", "sync_on_compute", "_to_sync")
_SILENT = ("log", "log_dict", "print")

_CONTAINERS = (list, tuple, set, frozenset, deque, dict)
_COPIED = (
    *_CONTAINERS,
    *(Tensor, nn.Module, np.ndarray),
    *(torch.Generator, np.random.Generator, np.random.RandomState, random.Random),
)


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
def attributes_copied(module: nn.Module) -> Iterator[None]:
    """Inside, changes to attributes, buffers, metric states and generators of `module` are made on copies.

    This holds for every module that is reachable from it, also through plain attributes and containers. `log`,
    `log_dict` and `print` do nothing, and torchmetrics do not synchronise between processes.
    """
    copies = _Copies()
    try:
        copies.enter(module)
        yield
    finally:
        copies.leave()


class _Copies:
    """Copies of everything mutable, by identity, so that what was one object stays one object."""

    def __init__(self) -> None:
        self._made: dict[int, Any] = {}
        self._originals: list[tuple[nn.Module, dict[str, Any]]] = []

    def enter(self, module: nn.Module) -> None:
        """Let the module work on copies of its attributes."""
        attributes = module.__dict__
        self._made[id(module)] = module
        self._originals.append((module, attributes))
        copied = attributes.copy()
        for name in _REGISTRIES:
            copied[name] = attributes[name].copy()
        for name in attributes.keys() - _REGISTRIES:
            copied[name] = self.of(attributes[name])
        for child in module._modules.values():
            self.of(child)
        if hasattr(type(module), "training_step"):  # a LightningModule
            copied.update(dict.fromkeys(_SILENT, Silence()))
        if "dist_sync_on_step" in copied:  # a torchmetrics metric
            copied.update(dict.fromkeys(_SYNCHRONISE, False))
        object.__setattr__(module, "__dict__", copied)

    def leave(self) -> None:
        """Put all originals back."""
        for module, attributes in self._originals:
            object.__setattr__(module, "__dict__", attributes)

    def of(self, value: Any) -> Any:
        """The copy of a value, or the value itself if it is shared: parameters, and objects of other types."""
        if not _is_copied(value.__class__):
            return value
        if id(value) in self._made:
            return self._made[id(value)]
        if isinstance(value, _CONTAINERS):
            return self._of_container(value)
        if isinstance(value, nn.Module):
            self.enter(value)
        elif isinstance(value, nn.Parameter):
            return value
        elif isinstance(value, Tensor):
            self._made[id(value)] = _copy_of_tensor(value)
        elif isinstance(value, torch.Generator):
            self._made[id(value)] = value.clone_state()
        else:
            self._made[id(value)] = copy.deepcopy(value)
        return self._made[id(value)]

    def _of_container(self, value: Any) -> Any:
        if isinstance(value, dict | list | deque):  # the copy is noted first: a container may hold itself
            plain = type(value) in (dict, list)  # which copy themselves faster
            copied = value.copy() if plain else copy.copy(value)  # keeps the type, the order and a default factory
            self._made[id(value)] = copied
            for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
                copied[key] = self.of(item)
            return copied
        items = [self.of(item) for item in value]
        if not isinstance(value, set) and all(map(operator.is_, items, value)):
            return value
        rebuild = getattr(type(value), "_make", type(value))  # a named tuple takes its fields one by one
        return self._made.setdefault(id(value), rebuild(items))


@cache
def _is_copied(kind: type[Any]) -> bool:
    """Remembered by class: to look through the bases of every attribute takes longer than to copy most of them."""
    return issubclass(kind, _COPIED)


def _copy_of_tensor(value: Tensor) -> Tensor:
    return value.detach().clone().requires_grad_() if value.requires_grad else value.clone()
