"""A step reads nothing from a device: the host would wait there until all that was launched has ended.

There is no device here. On "meta" tensors every read is an error, which shows algorithms, compression and projection;
with a Trainer, on the CPU, the operations that would read are counted.
"""

from __future__ import annotations

import json
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import cga_lightning as cga
from cga_lightning.algorithms import ALGORITHMS, from_name
from cga_lightning.core import finite
from cga_lightning.core.agent import Agent
from cga_lightning.core.communication import LocalCommunicator
from cga_lightning.core.driver import StepDriver
from cga_lightning.core.layout import FlatLayout
from cga_lightning.lightning.training import as_numbers
from cga_lightning.passes.parameters import Applied
from tests.toys import QUIET, Classifier, OwnData, one_class_each

AGENTS = 4
CASES: list[cga.Algorithm] = [
    *(from_name(name) for name in ALGORITHMS),
    cga.CGA(compressor=cga.TopK()),
    cga.QuasiGlobalMomentum(cga.CGA()),
    cga.WireDtype(cga.CGA()),
    cga.CGA(scope="layer"),
]
# Compressors that draw read their own generator, in host memory; on tensors without values, QSGD has no generator.


class _NeverRead:
    """In place of `Arriving`, for what is not there: its values must not be asked for within the step."""

    is_there = False

    def __init__(self, tensor: Tensor) -> None:
        assert tensor.is_meta


@pytest.mark.parametrize("algorithm", [*CASES, cga.CGA(compressor=cga.RandomK())], ids=str)
def test_algorithms_on_tensors_without_values(algorithm: cga.Algorithm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite, "Arriving", _NeverRead)
    layout = FlatLayout([nn.Parameter(torch.empty(shape)) for shape in ((7, 3), (3,), (300,))])
    layout.device = torch.device("meta")
    topology = cga.Ring(AGENTS)
    like = layout.zeros()
    agents = [
        Agent(rank, topology, torch.empty_like(like), lambda at: torch.empty_like(at), layout) for rank in range(AGENTS)
    ]
    driver = StepDriver(algorithm, agents, LocalCommunicator())
    for _ in range(3):
        driver.begin()
        driver.finish([torch.empty_like(like) for _ in agents])
        driver.end()
    assert all(agent.params.is_meta and agent.grad.is_meta for agent in agents)


class Reads(TorchDispatchMode):
    """Counts what reads a tensor on the host, by the line of the package that asks for it.

    What Lightning asks for itself, as its logger and its progress bar do, has no such line.
    """

    OPERATIONS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "unique", "masked_select", "item")
    IN_HOST_MEMORY = ("_checks.py", "copies.py", "notices.py")  # segment bounds, what has arrived, gloo's messages
    METHODS = ("tolist", "numpy", "cpu", "__array__")

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self._patches = ExitStack()

    def __enter__(self) -> Reads:
        for name in self.METHODS:
            self._patches.enter_context(mock.patch.object(Tensor, name, self._counted(name, getattr(Tensor, name))))
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.overloadpacket.__name__ in self.OPERATIONS:
            self._note(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))

    def _counted(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self._note(name)
            return method(*arguments, **options)

        return counted

    def _note(self, what: str) -> None:
        package = str(Path(cga.__file__).parent)
        lines = [frame for frame in traceback.extract_stack() if frame.filename.startswith(package)]
        if lines and Path(lines[-1].filename).name not in self.IN_HOST_MEMORY:
            self.found[f"{what} at {lines[-1].filename}:{lines[-1].lineno} {lines[-1].line}"] += 1


class Watch(pl.Callback):
    """Counts during one step in the middle of the run, and writes what it has found."""

    STEP = 2

    def __init__(self, folder: Path) -> None:
        self.folder, self.reads = folder, Reads()

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.STEP:
            self.reads.__enter__()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.STEP + 1:
            self.reads.__exit__(None, None, None)
            (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(self.reads.found))

    def found(self) -> list[dict[str, int]]:
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob("*.json"))]


class SomeUnused(Classifier):
    """With a parameter that no agent uses."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(3))


def watched(folder: Path, strategy: pl.strategies.Strategy, devices: int, module: type = Classifier) -> list[dict]:
    watch = Watch(folder)
    trainer = pl.Trainer(strategy=strategy, devices=devices, max_steps=4, callbacks=[watch], **QUIET)
    trainer.fit(module(), datamodule=OwnData(one_class_each(AGENTS)))
    return watch.found()


@pytest.mark.parametrize("algorithm", CASES, ids=str)
def test_a_simulated_step_reads_nothing(algorithm: cga.Algorithm, tmp_path: Path) -> None:
    assert watched(tmp_path, cga.SimulatedStrategy(AGENTS, algorithm, "ring"), 1) == [{}]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_step_in_processes_reads_nothing(name: str, tmp_path: Path) -> None:
    strategy = cga.DecentralizedStrategy(name, "ring", start_method="fork")
    assert watched(tmp_path, strategy, AGENTS) == [{}] * AGENTS


def test_notices_a_read() -> None:
    with Reads() as reads:
        assert as_numbers([{"a": torch.ones(())}]) == [{"a": 1.0}]
        int(torch.ones(()))  # of this file, not of the package
    ((line, times),) = reads.found.items()
    assert line.startswith("tolist at ") and "training.py" in line and times == 1


def test_a_parameter_that_nobody_uses_is_not_asked_for(tmp_path: Path) -> None:
    assert watched(tmp_path, cga.SimulatedStrategy(AGENTS, "cga", "ring"), 1, SomeUnused) == [{}]


@pytest.mark.parametrize("late", [False, True])
def test_directions_of_unused_parameters(late: bool) -> None:
    zero, one, own = torch.zeros(2), torch.ones(2), torch.ones(2)
    applied = Applied(late)
    assert applied.of([own, None, None], [zero, one, zero]) == [zero, one, None]  # the first answer is waited for
    changed = applied.of([own, None, None], [zero, zero, one])
    assert changed == ([zero, zero, None] if late else [zero, None, one])
    assert applied.of([own, None, None], [zero, zero, one]) == [zero, None, one]
