"""Run a module's own code elsewhere in parameter space and leave no trace of it.

The module's attributes are put aside and replaced by copies while the block runs. Parameters stay the same objects, so
optimizers, tied weights, fused RNN weights and hooks keep working. Not covered: files, printed text, globals, iterators
held by the module, and state inside objects that are neither tensors, arrays, modules nor plain containers.
"""

from __future__ import annotations

import copy
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
_SILENT = ("log", "log_dict", "print")

_KEPT = (bool, nn.Parameter)
_COPIED = (Tensor, np.ndarray, list, tuple, set, frozenset, deque, dict)


class RandomState(NamedTuple):
    """The state of the random generators of torch, the current CUDA device, Python and numpy."""

    cpu: Tensor
    cuda: Tensor | None
    python: tuple[Any, ...]
    numpy: dict[str, Any]

    @classmethod
    def capture(cls) -> RandomState:
        """The state now."""
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
        return cls(torch.get_rng_state(), cuda, random.getstate(), np.random.get_state(legacy=False))  # noqa: NPY002

    def restore(self) -> None:
        """Make it the state again."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002


def seed_all(seed: int) -> None:
    """Seed torch (all devices), Python and numpy, and nothing else: no environment variable is written."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002


@contextmanager
def sandbox(module: nn.Module) -> Iterator[None]:
    """Inside, changes to attributes, buffers, metric states and generators of `module` are made on copies.

    `log`, `log_dict` and `print` of every submodule do nothing, and torchmetrics do not synchronise between processes.
    """
    originals = [(m, m.__dict__) for m in module.modules()]
    state = RandomState.capture()
    copies: dict[int, Any] = {}  # by identity, so that what was one object stays one object
    try:
        for m, attributes in originals:
            object.__setattr__(m, "__dict__", _copy_attributes(m, attributes, copies))
        yield
    finally:
        for m, attributes in originals:
            object.__setattr__(m, "__dict__", attributes)
        state.restore()


def _copy_attributes(module: nn.Module, attributes: dict[str, Any], copies: dict[int, Any]) -> dict[str, Any]:
    copied = {name: value.copy() if name in _REGISTRIES else _copy(value, copies) for name, value in attributes.items()}
    if hasattr(type(module), "training_step"):  # a LightningModule
        copied.update(dict.fromkeys(_SILENT, _do_nothing))
    if "dist_sync_on_step" in copied:  # a torchmetrics metric
        copied["dist_sync_on_step"] = False
    return copied


def _copy(value: Any, copies: dict[int, Any]) -> Any:
    if value is None or isinstance(value, _KEPT) or not isinstance(value, _COPIED):
        return value
    if id(value) not in copies:
        copies[id(value)] = _copy_new(value, copies)
    return copies[id(value)]


def _copy_new(value: Any, copies: dict[int, Any]) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        copied = copy.copy(value)  # keeps the type, the order and a default factory
        copied.update({key: _copy(item, copies) for key, item in value.items()})
        return copied
    if type(value) is deque:
        return deque((_copy(item, copies) for item in value), value.maxlen)
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(_copy(item, copies) for item in value)
    return value  # a subclass that may not be rebuilt from its items


def _do_nothing(*_: Any, **__: Any) -> None:
    pass
