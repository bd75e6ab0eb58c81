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
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

# What every module has: parameters, submodules and hooks stay the same objects, in copied dictionaries.
_REGISTRIES = frozenset(name for name, value in vars(nn.Module()).items() if isinstance(value, dict | set)) - {
    "_buffers"
}
_SYNCHRONISE = ("dist_sync_on_step", "sync_on_compute", "_to_sync")
_SILENT = ("log", "log_dict", "print")

_PLAIN = frozenset({type(None), bool, int, float, str})  # most attributes, told apart without a slow isinstance
_CONTAINERS = (list, tuple, set, frozenset, deque, dict)
_COPIED = (
    *_CONTAINERS,
    *(Tensor, nn.Module, np.ndarray),
    *(torch.Generator, np.random.Generator, np.random.RandomState, random.Random),
)


class RandomState(NamedTuple):
    """The state of the random generators of torch, the current CUDA device, Python and numpy.

    Tensors, numbers and plain containers only, so that any reader of checkpoints accepts its `_asdict()`.
    """

    cpu: Tensor
    cuda: Tensor | None
    python: tuple[Any, ...]
    numpy: dict[str, Any]

    @classmethod
    def capture(cls) -> RandomState:
        """The state now."""
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
        return cls(torch.get_rng_state(), cuda, random.getstate(), _numpy_state())

    def restore(self) -> None:
        """Make it the state again."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002


def _numpy_state() -> dict[str, Any]:
    """With lists in place of arrays: numpy takes them over twenty times faster, and checkpoints hold them."""
    state: dict[str, Any] = np.random.get_state(legacy=False)  # noqa: NPY002
    words = {name: word.tolist() if isinstance(word, np.ndarray) else word for name, word in state["state"].items()}
    return {**state, "state": words}


def seed_all(seed: int) -> None:
    """Seed torch (all devices), Python and numpy, and nothing else: no environment variable is written."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002


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
def sandbox(module: nn.Module) -> Iterator[None]:
    """Inside, changes to attributes, buffers, metric states and generators of `module` are made on copies.

    This holds for every module that is reachable from it, also through plain attributes and containers. `log`,
    `log_dict` and `print` do nothing, and torchmetrics do not synchronise between processes.
    """
    copies = _Copies()
    state = RandomState.capture()
    try:
        copies.enter(module)
        yield
    finally:
        copies.leave()
        state.restore()


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
        copied = {name: value.copy() if name in _REGISTRIES else self.of(value) for name, value in attributes.items()}
        for child in module.children():
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
        if type(value) in _PLAIN or not isinstance(value, _COPIED):
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
            self._made[id(value)] = value.detach().clone().requires_grad_(value.requires_grad)
        elif isinstance(value, torch.Generator):
            self._made[id(value)] = value.clone_state()
        else:
            self._made[id(value)] = copy.deepcopy(value)
        return self._made[id(value)]

    def _of_container(self, value: Any) -> Any:
        if isinstance(value, dict | list | deque):  # the copy is noted first: a container may hold itself
            copied = self._made[id(value)] = copy.copy(value)  # keeps the type, the order and a default factory
            for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
                copied[key] = self.of(item)
            return copied
        items = [self.of(item) for item in value]
        if not isinstance(value, set) and all(map(operator.is_, items, value)):
            return value
        rebuild = getattr(type(value), "_make", type(value))  # a named tuple takes its fields one by one
        return self._made.setdefault(id(value), rebuild(items))
