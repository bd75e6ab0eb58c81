"""Which Lightning: `lightning.pytorch` and `pytorch_lightning` are two class trees, and a Trainer accepts only its own.

Strategy names are registered in each tree as soon as it is imported. A public class is that of the tree in use: the one
the user has imported, whether before or after this package.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

BINDINGS = {
    "lightning.pytorch": "cga_lightning._for_lightning",
    "pytorch_lightning": "cga_lightning._for_pytorch_lightning",
}
"""Tree -> the module that defines the public classes on top of it and registers the names."""

_loaded_here: set[str] = set()


def install() -> None:
    """Register the strategy names in the trees that are imported, and later in those that will be."""
    for tree, binding in BINDINGS.items():
        if tree in sys.modules:
            importlib.import_module(binding)
    sys.meta_path.insert(0, _AfterImport())


def public_class(name: str) -> type:
    """The class of that name for the tree in use."""
    return getattr(importlib.import_module(BINDINGS[_tree_in_use()]), name)  # type: ignore[no-any-return]


class InTreeOfUse:
    """A public class that was imported before the user's Lightning: calling it builds the class of the right tree."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Redirect to the twin in the other tree only if this class was a guess."""
        guessed = any(cls.__module__ == BINDINGS[tree] for tree in _loaded_here)
        actual = public_class(cls.__name__) if guessed else cls
        return super().__new__(cls) if actual is cls else actual(*args, **kwargs)

    def __repr__(self) -> str:
        """Names the tree, since a Trainer of the other one refuses this object and shows no more than this."""
        trees = [tree for tree, binding in BINDINGS.items() if binding == type(self).__module__]
        return f"<{type(self).__name__} for users of {', '.join(trees)}>" if trees else super().__repr__()


def _tree_in_use() -> str:
    by_user = [tree for tree in BINDINGS if tree in sys.modules and tree not in _loaded_here]
    if by_user:
        return by_user[0]
    tree = next(tree for tree in BINDINGS if importlib.util.find_spec(tree.partition(".")[0]) is not None)
    if tree not in sys.modules:
        _loaded_here.add(tree)
        importlib.import_module(tree)
    return tree


class _AfterImport(MetaPathFinder):
    """Imports the binding of a tree right after the tree itself."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = self._found_by_others(fullname, path, target) if fullname in BINDINGS else None
        if spec is not None and spec.loader is not None:
            spec.loader = _BindingLoader(spec.loader, BINDINGS[fullname])
        return spec

    def _found_by_others(self, *module: Any) -> ModuleSpec | None:
        specs = (finder.find_spec(*module) for finder in sys.meta_path if finder is not self)
        return next((spec for spec in specs if spec is not None), None)


class _BindingLoader(Loader):
    """Loads a tree by its own loader, which is also all that the loaded module shows, and then the binding."""

    def __init__(self, loader: Loader, binding: str) -> None:
        self._loader = loader
        self._binding = binding

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        importlib.import_module(self._binding)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
