"""Which Lightning: `lightning.pytorch` and `pytorch_lightning` are two class trees, and a Trainer accepts only its own.

The public classes are those of `pytorch_lightning`. Their objects are offered to Trainers of the other tree as well;
one that is taken turns into its twin: the same class, on top of the other tree.
"""

from __future__ import annotations

import copyreg
import functools
import importlib
from abc import ABCMeta
from operator import attrgetter
from types import ModuleType
from typing import Any

TREES = ("pytorch_lightning", "lightning.pytorch")
_PAIRS = {"pytorch_lightning": "lightning.pytorch", "lightning_fabric": "lightning.fabric"}
_OTHER = _PAIRS | {theirs: ours for ours, theirs in _PAIRS.items()}
"""Package -> the one with the same classes in the other tree."""


def other_tree() -> ModuleType | None:
    """`lightning.pytorch`, if it is there; already now, since names must be registered before its Trainer hears one."""
    try:
        return importlib.import_module("lightning.pytorch")
    except ImportError:
        return None


def tree_of(thing: object) -> str | None:
    """The tree that the class of `thing` stands on."""
    packages = map(_package, type(thing).__mro__)
    return next((package for package in packages if package in TREES), None)


def offer(cls: type) -> None:
    """Let objects of this class count as objects of the other tree, which asks before it takes one."""
    other = _counterpart(next(base for base in cls.__mro__ if _package(base) in TREES))
    if isinstance(other, ABCMeta):
        other.register(cls)
    else:
        cls.__bases__ = (*cls.__bases__, other)


def join(thing: Any, owner: object) -> None:
    """Turn `thing` into its twin if `owner`, who takes it, is of the other tree."""
    if tree_of(owner) not in (None, tree_of(thing)):
        thing.__class__ = twin(type(thing))


def twin(cls: type) -> type:
    """The same class on top of the other tree."""
    return _origin(cls) or _new_twin(cls)


class _Twin(ABCMeta):
    """Makes twins. They inherit the methods of their origin, but `super()` in these leads into the other tree."""

    def mro(cls) -> list[type]:
        origin = _origin(cls)
        return super().mro() if origin is None else [cls, *map(_counterpart, origin.__mro__)]


@functools.cache
def _new_twin(cls: type) -> type:
    # Under the same name, by which checkpoints keep the state of an object.
    same = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    return _Twin(cls.__name__, (cls,), {**same, "_origin": cls})


def _origin(cls: type) -> type | None:
    """The class whose twin this is; a class that is derived from a twin is none."""
    return vars(cls).get("_origin")


def _pickled(cls: _Twin) -> str | tuple[Any, ...]:
    """As in `copyreg.pickle`: where the name leads to the origin, a spawned process makes the twin again."""
    origin = _origin(cls)
    return cls.__qualname__ if origin is None else (twin, (origin,))


copyreg.pickle(_Twin, _pickled)


def _counterpart(cls: type) -> type:
    package = _package(cls)
    if package is None:
        return cls
    module = importlib.import_module(_OTHER[package] + cls.__module__.removeprefix(package))
    return attrgetter(cls.__qualname__)(module)  # type: ignore[no-any-return]


def _package(cls: type) -> str | None:
    return next((package for package in _OTHER if f"{cls.__module__}.".startswith(f"{package}.")), None)
