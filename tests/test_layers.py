"""Imports run down only, from layer to layer as CONTRIBUTING.md draws them; a failure says what to do."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cga_lightning"  # read and not imported, which an import upwards may prevent
CONTRIBUTING = ROOT / "CONTRIBUTING.md"

LAYERS = [
    {"names", "classes", "copies", "copy_on_write"},
    {"topology", "compression", "partition", "ops"},
    {"core"},
    {"passes", "algorithms"},
    {"lightning"},
    {"__init__", "agent"},
    {"cli"},
    {"__main__"},
]
"""From the bottom up: folders and modules directly below the package."""

ABOVE_OBJECTS = [{"agent_strategy"}, {"decentralized", "simulated"}, {"__init__"}]
"""In lightning/, from the bottom up: what stands on the objects that a strategy owns, which are all other modules."""

LIGHTNING = ("lightning", "pytorch_lightning", "lightning_fabric")
KNOW_LIGHTNING = ("lightning", "cli")
"""The rooms that do: the commands train with a Trainer, as users do."""

LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
ABOVE = {module: level for level, modules in enumerate(ABOVE_OBJECTS, start=1) for module in modules}
FILES = sorted(PACKAGE.rglob("*.py"))
OBJECTS = sorted((PACKAGE / "lightning").glob("*.py"))
EVERY_FILE = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))


def room_of(path: Path) -> str:
    """The folder or module directly below the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def tree_of(path: Path) -> ast.Module:
    """What runs; not what is there for the type checker alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    return tree


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports when it runs, and the names that it takes from them, as a.b.c."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.relative_to(PACKAGE)}, line {node.lineno}: import from cga_lightning instead"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed":
            yield "torch.distributed"


def imported(name: str, package: str, parts: Mapping[str, int] | set[str]) -> str | None:
    """The part of `package` that an import asks for, `__init__` for a name of the package itself; None if elsewhere."""
    if not f"{name}.".startswith(f"{package}."):
        return None
    part = name.removeprefix(package).strip(".").partition(".")[0]
    return part if part in parts else "__init__"


@EVERY_FILE
def test_imports_run_down(path: Path) -> None:
    here = room_of(path)
    for name in imports(path):
        below = imported(name, "cga_lightning", LEVEL)
        assert below in (None, here) or here not in LEVEL or LEVEL[below] < LEVEL[here], (
            f"{path.relative_to(PACKAGE)} imports {name}, but {here} is in layer {LEVEL[here]} and may import lower "
            f"layers only; {below} is in layer {LEVEL[below]}. Move what both need into a lower layer, or let the "
            "caller pass it in."
        )


@EVERY_FILE
def test_what_is_outside_of_lightning_knows_no_lightning(path: Path) -> None:
    for name in imports(path):
        assert room_of(path) in KNOW_LIGHTNING or name.partition(".")[0] not in LIGHTNING, (
            f"{path.relative_to(PACKAGE)} imports {name}. Move what needs it into lightning/, which passes in plain "
            "torch objects; a type alone is imported under TYPE_CHECKING."
        )


@EVERY_FILE
def test_processes_talk_in_two_places(path: Path) -> None:
    file = path.relative_to(PACKAGE)
    for name in imports(path):
        talks = f"{name}.".startswith("torch.distributed.")
        assert not talks or room_of(path) == "lightning" or file.as_posix() == "core/communication.py", (
            f"{file} uses {name}. Algorithms yield their messages, which core/communication.py carries; what else the "
            "processes tell each other is in lightning/peers.py."
        )


@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: path.name)
def test_what_a_strategy_owns_does_not_import_it(path: Path) -> None:
    modules = {file.stem for file in OBJECTS}
    for name in imports(path):
        below = imported(name, "cga_lightning.lightning", modules)
        assert below not in ABOVE or ABOVE[below] < ABOVE.get(path.stem, 0), (
            f"lightning/{path.name} imports {name}, which stands above it. Let the strategy pass in what it needs; a "
            "type alone is imported under TYPE_CHECKING. ABOVE_OBJECTS in tests/test_layers.py has the order."
        )


def test_every_room_has_a_layer() -> None:
    rooms = {room_of(path) for path in FILES}
    where = 'LAYERS in tests/test_layers.py and the table "Where things are" in CONTRIBUTING.md'
    new, gone = sorted(rooms - LEVEL.keys()), sorted(LEVEL.keys() - rooms)
    assert not new, f"cga_lightning/{new[0]} is in no layer: add it to {where}, in a layer above all that it imports."
    assert not gone, f"cga_lightning/{gone[0]} is not there any more: take it out of {where}."


def drawn() -> list[tuple[int, str]]:
    """Layer and room of every row of the table in CONTRIBUTING.md."""
    _, section = CONTRIBUTING.read_text().split("## Where things are\n")
    rows = re.findall(r"^\| (\d+) \| `(\w+)(?:/|\.py)` \|", section.split("\n## ")[0], flags=re.MULTILINE)
    return [(int(layer), room) for layer, room in rows]


def test_contributing_draws_these_layers() -> None:
    table, layers = drawn(), [(level, room) for room, level in LEVEL.items()]
    names = ['the table "Where things are" in CONTRIBUTING.md', "LAYERS in tests/test_layers.py"]
    for layer, room in sorted({*table} ^ {*layers}):
        has, lacks = names if (layer, room) in table else reversed(names)
        raise AssertionError(f"{room} is in layer {layer} of {has}, but not of {lacks}. Write the same in both.")
    assert [layer for layer, _ in table] == sorted((layer for layer, _ in layers), reverse=True), (
        f"In {names[0]} is one row for every room, from the top layer down."
    )


def test_there_are_files() -> None:
    assert len(FILES) > 50 and len(OBJECTS) > 15
