"""The contents of everything mutable that a module holds, remembered to be put back in place.

Nothing is replaced: modules, containers, tensors and objects stay the same ones and get their contents back, so that
whoever else holds one of them (an optimizer, a callback, a handle of a hook) keeps what it has. Tensors are remembered
copy on write: they share their memory with what they were until somebody writes into one of them.

Not covered: files, printed text, globals, iterators, and the state inside objects whose class, or a base of it, belongs
to a framework (`_FRAMEWORKS`) or has no `__dict__`.
"""

from __future__ import annotations

import argparse
import copy
import logging
import operator
import random
import sys
import types
from collections import OrderedDict, UserDict, UserList, deque
from collections.abc import Callable, Iterable, Iterator, Set
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cga_lightning.copy_on_write import address, lazily_copied, shares_memory

_FRAMEWORKS = frozenset({"cga_lightning", "lightning", "lightning_fabric", "numpy", "pytorch_lightning", "torch"})
_OPEN = frozenset({"abc", "builtins", "collections", "typing"})
"""Modules of the standard library from which classes of one's own may derive: all their state is in `__dict__`."""

_log = logging.getLogger(__name__)


class LargeContainers:
    """Which large containers hold values that nobody changes in place, such as a replay buffer or a list of outputs.

    To look through them at every step takes far longer than the step. So this is done at the steps 1, 4, 16, 64, ...
    and when one of them is new. Where something inside was changed, it is done at every step from then on.
    """

    SIZE = 64

    def __init__(self) -> None:
        self._step = 1
        self._known: set[int] = set()
        self._changed: set[int] = set()
        self.left: set[int] = set()
        """Those whose inside is left alone in this step, by identity."""

    def end_step(self) -> None:
        """The passes of a step are over: what is remembered from now on counts for the next one."""
        self._step += 1
        exponent = self._step.bit_length() - 1
        self.left = set() if exponent % 2 == 0 and self._step == 1 << exponent else self._known - self._changed

    def learn(self, before: Snapshot) -> None:
        """An own pass has run since `before`: find out whether it has changed something inside."""
        for container, inside in before.all_large():
            known = id(container) in self._known
            self._known.add(id(container))
            if id(container) not in self._changed and not inside.is_unchanged():
                self._changed.add(id(container))
                if known:
                    _log.warning(
                        f"training_step changes what lies in a {type(container).__name__} of {len(container)} entries "
                        f"in place, but did not at step {self._step // 4}. Since then some cross-gradients may have "
                        "been those of a changed state; from now on they are not. Keep what changes in one tensor."
                    )


class Snapshot:
    """What is reachable from `roots` now: attributes, buffers, frozen parameters, metrics, generators, containers.

    Args:
        roots: modules, or any other objects, such as a batch.
        leave: objects that are somebody else's business: the parameters that are trained.
        keep: names of attributes of the first root that `restore` leaves as they are then.
        base: another snapshot, which `restore` puts back first.
        large: the containers to be left alone; none if not given.

    Attributes:
        modules: all that were found.
        large: the large containers, each with its inside.
    """

    def __init__(
        self,
        *roots: Any,
        leave: Iterable[object] = (),
        keep: Set[str] = frozenset(),
        base: Snapshot | None = None,
        large: LargeContainers | None = None,
    ) -> None:
        self._keep = keep
        self._base = base
        self.modules: list[nn.Module] = [] if base is None else list(base.modules)
        self.large: list[tuple[Any, Snapshot]] = []
        self._left = None if large is None else large.left
        self._empty: list[Any] = []
        self._dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._sequences: list[tuple[Any, list[Any]]] = []
        self._sets: list[tuple[set[Any], set[Any]]] = []
        self._tensors: list[tuple[Tensor, Tensor, Tensor]] = []
        self._grads: list[tuple[Tensor, Tensor | None]] = []
        self._others: list[tuple[Callable[[Any], object], Any]] = []
        self._arrays: list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
        self._seen = set(map(id, leave))
        self._look_through(roots)
        self._attributes = self._take_attributes(roots[0].__dict__) if keep else None

    def _look_through(self, roots: Iterable[Any]) -> None:
        seen, todo = self._seen, [roots]
        while todo:
            for value in todo.pop():
                kind = value.__class__
                if kind in _CLEARED:
                    if not value:
                        self._empty.append(value)
                        continue
                elif kind in _LEFT_ALONE:
                    continue
                if id(value) not in seen:
                    seen.add(id(value))
                    inside = _look_of(kind)(self, value)
                    if inside:
                        todo.append(inside)

    def _take_attributes(self, attributes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        place = next(i for i, (mapping, _) in enumerate(self._dicts) if mapping is attributes)
        _, saved = self._dicts.pop(place)
        return attributes, {name: value for name, value in saved.items() if name not in self._keep}

    def restore(self) -> None:
        """Make the contents again what they were; may be repeated."""
        if self._base is not None:
            self._base.restore()
        if self._attributes is not None and not self._has_same_attributes(*self._attributes):
            attributes, saved = self._attributes
            kept = {name: value for name, value in attributes.items() if name in self._keep}
            attributes.clear()
            attributes.update(saved)
            attributes.update(kept)
        for container in self._empty:
            if container:
                container.clear()
        for mapping, saved in self._dicts:
            if not same_items(mapping, saved):
                kind: Any = OrderedDict if isinstance(mapping, OrderedDict) else dict
                kind.clear(mapping)
                kind.update(mapping, saved)
        for sequence, items in self._sequences:
            if not same_entries(sequence, items):
                sequence.clear()
                sequence.extend(items)
        for members, saved_members in self._sets:
            if members != saved_members:
                members.clear()
                members.update(saved_members)
        for tensor, memory, values in self._tensors:
            if address(tensor) != address(memory) or tensor.shape != memory.shape:
                tensor.data = memory
            if not shares_memory(memory, values):
                memory.copy_(values)
        for tensor, grad in self._grads:
            tensor.grad = grad
        for array, elements in self._arrays:
            np.copyto(array, elements)
        for _, inside in self.large:
            inside.restore()
        for put_back, state in self._others:
            put_back(state)

    def all_large(self) -> list[tuple[Any, Snapshot]]:
        """The large containers, each with its inside, also those of `base`."""
        return self.large if self._base is None else [*self._base.all_large(), *self.large]

    def is_unchanged(self) -> bool:
        """Whether everything is known to have the contents that it had; generators and sparse tensors never are."""
        return (
            not any(self._empty)
            and (self._attributes is None or self._has_same_attributes(*self._attributes))
            and all(same_items(now, saved) for now, saved in self._dicts)
            and all(same_entries(now, saved) for now, saved in self._sequences)
            and all(now == saved for now, saved in self._sets)
            and all(
                shares_memory(memory, values) and address(tensor) == address(memory) and tensor.shape == memory.shape
                for tensor, memory, values in self._tensors
            )
            and all(tensor.grad is grad for tensor, grad in self._grads)
            and all(array.tobytes() == values.tobytes() for array, values in self._arrays)
            and all(inside.is_unchanged() for _, inside in self.large)
            and (self._base is None or self._base.is_unchanged())
            and not self._others
        )

    def _has_same_attributes(self, now: dict[str, Any], saved: dict[str, Any]) -> bool:
        return same_items({name: value for name, value in now.items() if name not in self._keep}, saved)

    # --- as pairs of an object and its contents

    def contents(self) -> Iterator[tuple[Any, Any]]:
        """Containers with their items, and tensors with their memory and values."""
        if self._attributes is not None:
            yield self._attributes
        yield from ((container, container.__class__()) for container in self._empty)
        yield from chain(self._dicts, self._sequences, self._sets)
        yield from ((tensor, (memory, values)) for tensor, memory, values in self._tensors)

    def with_contents(self, pairs: Iterable[tuple[Any, Any]]) -> Snapshot:
        """A copy that has these pairs in place of its own."""
        made = copy.copy(self)
        made._empty, made._dicts, made._sequences, made._sets, made._tensors = [], [], [], [], []
        for holder, items in pairs:
            if self._attributes is not None and holder is self._attributes[0]:
                made._attributes = (holder, items)
            elif isinstance(holder, Tensor):
                made._tensors.append((holder, *items))
            elif isinstance(holder, dict):
                made._dicts.append((holder, items))
            else:
                (made._sets if isinstance(holder, set) else made._sequences).append((holder, items))
        return made

    # --- what is inside of a value, after its contents were noted

    def _look_at_dict(self, value: dict[Any, Any]) -> Iterable[Any]:
        saved = dict(value)
        self._dicts.append((value, saved))
        return saved.values() if len(saved) < LargeContainers.SIZE else self._look_at_large(value, saved.values())

    def _look_at_sequence(self, value: Any) -> Iterable[Any]:
        items = list(value)
        self._sequences.append((value, items))
        return items if len(items) < LargeContainers.SIZE else self._look_at_large(value, items)

    def _look_at_large(self, container: Any, items: Iterable[Any]) -> Iterable[Any]:
        if self._left is None:
            return items
        if id(container) not in self._left:
            inside = Snapshot()
            inside._seen, inside._left = self._seen, self._left
            inside._look_through(items)
            self.modules += inside.modules
            self.large.append((container, inside))
        return ()

    def _look_at_set(self, value: set[Any]) -> Iterable[Any]:
        members = set(value)
        self._sets.append((value, members))
        return members

    def _look_at_tuple(self, value: Iterable[Any]) -> Iterable[Any]:
        return value

    def _look_at_object(self, value: Any) -> Iterable[Any]:
        return (value.__dict__,)

    def _look_at_module(self, value: nn.Module) -> Iterable[Any]:
        self.modules.append(value)
        if isinstance(value, torch.jit.ScriptModule):
            return (value.__dict__, *value.parameters(), *value.buffers())
        return (value.__dict__,)

    def _look_at_tensor(self, value: Tensor) -> Iterable[Any]:
        memory = value.data
        if memory.layout is not torch.strided or memory.is_nested:
            self._others.append((lambda values: setattr(value, "data", values.clone()), memory.clone()))
        else:
            if 0 in memory.stride():  # expanded: what can be written is one element of each such dimension
                memory = value = memory[tuple(slice(None) if stride else 0 for stride in memory.stride())]
            self._tensors.append((value, memory, lazily_copied(memory)))
        if value.requires_grad and value.is_leaf:
            self._grads.append((value, value.grad))
            return (value.grad,)
        return ()

    def _look_at_array(self, value: np.ndarray[Any, Any]) -> Iterable[Any]:
        if value.flags.writeable:
            self._arrays.append((value, value.copy()))
        return ()

    def _look_at_torch_generator(self, value: torch.Generator) -> Iterable[Any]:
        self._others.append((value.set_state, value.get_state()))
        return ()

    def _look_at_numpy_generator(self, value: np.random.Generator) -> Iterable[Any]:
        generator = value.bit_generator
        self._others.append((lambda state: setattr(generator, "state", state), generator.state))
        return ()

    def _look_at_numpy_random_state(self, value: np.random.RandomState) -> Iterable[Any]:
        self._others.append((value.set_state, value.get_state(legacy=False)))
        return ()

    def _look_at_python_random(self, value: random.Random) -> Iterable[Any]:
        self._others.append((value.setstate, value.getstate()))
        return ()


def same_entries(first: Any, second: Any) -> bool:
    """Whether both hold the same objects in the same order."""
    return len(first) == len(second) and all(map(operator.is_, first, second))


def same_items(first: dict[Any, Any], second: dict[Any, Any]) -> bool:
    """Whether both hold the same keys and values in the same order."""
    return same_entries(first.values(), second.values()) and same_entries(first, second)


_Look = Callable[[Snapshot, Any], Iterable[Any]]
_KINDS: dict[type[Any], _Look] = {
    nn.Module: Snapshot._look_at_module,
    Tensor: Snapshot._look_at_tensor,
    dict: Snapshot._look_at_dict,
    list: Snapshot._look_at_sequence,
    deque: Snapshot._look_at_sequence,
    set: Snapshot._look_at_set,
    tuple: Snapshot._look_at_tuple,
    frozenset: Snapshot._look_at_tuple,
    np.ndarray: Snapshot._look_at_array,
    torch.Generator: Snapshot._look_at_torch_generator,
    np.random.Generator: Snapshot._look_at_numpy_generator,
    np.random.RandomState: Snapshot._look_at_numpy_random_state,
    random.Random: Snapshot._look_at_python_random,
    types.SimpleNamespace: Snapshot._look_at_object,
    argparse.Namespace: Snapshot._look_at_object,
    UserDict: Snapshot._look_at_object,
    UserList: Snapshot._look_at_object,
}
_CLEARED = frozenset({dict, list, set, OrderedDict})
_LEFT_ALONE: set[type[Any]] = set()
"""Classes that were met and have nothing inside."""


def _nothing(_: Snapshot, __: Any) -> Iterable[Any]:
    return ()


@cache
def _look_of(kind: type[Any]) -> _Look:
    """How to look at values of a class; to look through its bases takes longer than to note most values."""
    for base, look in _KINDS.items():
        if issubclass(kind, base):
            return look
    if _is_ones_own(kind):
        return Snapshot._look_at_object
    _LEFT_ALONE.add(kind)
    return _nothing


def _is_ones_own(kind: type[Any]) -> bool:
    """Whether a class and its bases are of the user's project, or of a library that is none of the frameworks."""
    if issubclass(kind, type) or not kind.__dictoffset__ or _package(kind) in sys.stdlib_module_names:
        return False
    packages = set(map(_package, kind.__mro__))
    return not packages & (_FRAMEWORKS | (sys.stdlib_module_names - _OPEN))


def _package(kind: type[Any]) -> str:
    return kind.__module__.partition(".")[0]
