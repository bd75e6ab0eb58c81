"""What is added to the package is exported, named, tested and documented; a failure says what is missing and where."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import pytest

import cga_lightning
from cga_lightning import Algorithm, Compressor, Topology, algorithms, compression, partition, topology
from tests.test_compression import ALL
from tests.test_every_algorithm import CASES
from tests.test_topology import DIRECTED, UNDIRECTED

ROOT = Path(__file__).parent.parent


class Kind(NamedTuple):
    """What can be added in one file of a subpackage."""

    package: ModuleType
    base: type
    names: str
    """The table of names of the subpackage."""
    row: str
    """Where the README lists them."""
    tests: str
    tables: str
    """Those of the test file, one of which must have it."""
    tested: list[Any]


KINDS = [
    Kind(
        algorithms,
        Algorithm,
        "ALGORITHMS",
        "Algorithms",
        "tests/test_every_algorithm.py",
        "CASES, unless its name brings it there",
        [algorithm for algorithm, _ in CASES],
    ),
    Kind(compression, Compressor, "COMPRESSORS", "Compressors", "tests/test_compression.py", "BIASED or UNBIASED", ALL),
    Kind(
        topology,
        Topology,
        "TOPOLOGIES",
        "Topologies",
        "tests/test_topology.py",
        "UNDIRECTED or DIRECTED, unless its name brings it there",
        UNDIRECTED + DIRECTED,
    ),
]


def public(module: ModuleType) -> Iterator[Any]:
    """What a module defines itself under a name for others."""
    for name, value in vars(module).items():
        if getattr(value, "__module__", None) == module.__name__ and not name.startswith("_"):
            yield value


def added(kind: Kind) -> Iterator[type]:
    """The classes of a subpackage that can be used as they are: no abstract bases, no helpers."""
    for module in iter_modules(kind.package.__path__, f"{kind.package.__name__}."):
        for found in public(import_module(module.name)):
            if inspect.isclass(found) and issubclass(found, kind.base) and not inspect.isabstract(found):
                yield found


CLASSES = [pytest.param(kind, found, id=found.__name__) for kind in KINDS for found in added(kind)]
PARTITIONS = [
    found
    for found in public(partition)
    if isinstance(found, FunctionType) and "agents" in inspect.signature(found).parameters
]


def file_of(package: ModuleType) -> str:
    return str(Path(package.__file__ or "").relative_to(ROOT))


def needs_arguments(found: type) -> bool:
    """Such as an algorithm around another one, which no name can stand for."""
    parameters = inspect.signature(found).parameters.values()
    required = (p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.default is p.empty for p in parameters)
    return any(required)


def snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def readme_row(row: str) -> str:
    (line,) = re.findall(rf"^\| {row} \|.*$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    return str(line)


@pytest.mark.parametrize("kind, found", CLASSES)
def test_its_subpackage_exports_it(kind: Kind, found: type) -> None:
    name = found.__name__
    assert name in kind.package.__all__ and getattr(kind.package, name, None) is found, (
        f'{file_of(kind.package)}: add `from {found.__module__} import {name}`, and "{name}" to __all__'
    )


@pytest.mark.parametrize("kind, found", CLASSES)
def test_the_package_exports_it(kind: Kind, found: type) -> None:
    name = found.__name__
    assert name in cga_lightning.__all__ and getattr(cga_lightning, name, None) is found, (
        f'{file_of(cga_lightning)}: add `from {kind.package.__name__} import {name}`, and "{name}" to __all__'
    )


@pytest.mark.parametrize("kind, found", CLASSES)
def test_it_has_a_name(kind: Kind, found: type) -> None:
    names: Mapping[str, Any] = getattr(kind.package, kind.names)
    assert needs_arguments(found) or found in {type(make()) for make in names.values()}, (
        f'{file_of(kind.package)}: add `"{snake_case(found.__name__)}": {found.__name__},` to {kind.names}'
    )


@pytest.mark.parametrize("kind, found", CLASSES)
def test_it_keeps_the_promises_of_its_kind(kind: Kind, found: type) -> None:
    name = found.__name__
    in_a_test = re.search(rf"\b{name}\(", (ROOT / kind.tests).read_text())
    assert in_a_test or any(type(value) is found for value in kind.tested), (
        f"{kind.tests}: add `{name}(...)` to {kind.tables}"
    )


@pytest.mark.parametrize("kind, found", CLASSES)
def test_the_readme_names_it(kind: Kind, found: type) -> None:
    assert f"`{found.__name__}`" in readme_row(kind.row), (
        f'README.md: add `{found.__name__}` to the row "{kind.row}" of the table'
    )


ALGORITHM_CLASSES = [pytest.param(found, id=found.__name__) for found in added(KINDS[0])]


@pytest.mark.parametrize("found", ALGORITHM_CLASSES)
def test_an_algorithm_is_described(found: type) -> None:
    name = found.__name__
    row = f'| `"{snake_case(name)}"` | `{name}()` | ...'
    assert f"`{name}(" in (ROOT / "docs/algorithms.md").read_text(), (
        f"docs/algorithms.md: add a row `{row}` to the table, or `{name}(algorithm)` to the wrappers below it"
    )


@pytest.mark.parametrize("found", ALGORITHM_CLASSES)
def test_the_rule_of_an_algorithm_is_tested(found: type) -> None:
    name, module = found.__name__, found.__module__.rpartition(".")[2]
    texts = [path.read_text() for path in (ROOT / "tests/algorithms").glob("test_*.py")]
    assert any(re.search(rf"\b{name}\(", text) for text in texts), (
        f"tests/algorithms/test_{module}.py: add a test of what {name}() computes, against the equations written out"
    )


@pytest.mark.parametrize("found", PARTITIONS, ids=lambda found: found.__name__)
def test_a_partition_is_named_and_documented(found: FunctionType) -> None:
    name = found.__name__
    assert partition.PARTITIONS.get(name) is found, f'{file_of(partition)}: add `"{name}": {name},` to PARTITIONS'
    assert f"`{name}`" in readme_row("Partitions"), f'README.md: add `{name}` to the row "Partitions" of the table'


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.names)
def test_there_is_something_of_every_kind(kind: Kind) -> None:
    assert len(list(added(kind))) >= 5 and len(PARTITIONS) >= 4
