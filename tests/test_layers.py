"""Imports run down only: the Lightning layer -> algorithms -> agent and communication -> leaves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import cga_lightning

PACKAGE = Path(cga_lightning.__file__).parent
LAYERS = [
    {
        "topology",
        "partition",
        "compression",
        "flat",
        "ops",
        "sandbox",
        "module_state",
        "loaders",
        "log_mean",
        "finite",
    },
    {"agent", "window", "stepping"},
    {"algorithms", "residents"},
    {"communication"},
    {"_lightning", "registration"},
    {"data", "metrics", "checkpoint", "launching"},
    {"agent_strategy"},
    {"agreement"},
    {"strategy", "simulation"},
    {"_for_lightning", "_for_pytorch_lightning"},
    {"__init__", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    """The module or subpackage directly below the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports when it runs; not those for the type checker alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "cga_lightning":
            yield from (f"cga_lightning.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_down(path: Path) -> None:
    here = part(path)
    for name in imports(path):
        root, _, rest = name.partition(".")
        below = rest.partition(".")[0]
        if root == "cga_lightning" and below in LEVEL and below != here:
            assert LEVEL[below] < LEVEL[here], f"{here} imports {below}"
        if root in ("lightning", "pytorch_lightning", "lightning_fabric"):
            assert LEVEL[here] >= LEVEL["_lightning"], f"{here} imports {name}"
        if name == "torch.distributed":
            assert LEVEL[here] >= LEVEL["communication"], f"{here} imports {name}"
