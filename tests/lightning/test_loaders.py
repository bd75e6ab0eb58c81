"""All agents make the same number of steps, whatever their loaders are, say of themselves, or keep of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import cga_lightning as cga
from cga_lightning.lightning.loaders import LoadersOfSimulation, keeps_its_length
from tests.toys import QUIET, Classifier, largest_difference, one_class_each

ROOT = Path(__file__).parents[2]
AGENTS = 3
pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined"),
]


class Stream(IterableDataset):
    """Four times so many samples as it has batches."""

    def __init__(self, batches: int, agent: int = 0) -> None:
        self.batches, self.agent = batches, agent

    def __iter__(self):
        samples = one_class_each(AGENTS, 4 * self.batches)[self.agent]
        return (samples[i] for i in range(len(samples)))


class Promises(Stream):
    """Says that it has samples for five batches."""

    def __len__(self) -> int:
        return 20


class Sampler(torch.utils.data.Sampler):
    def __init__(self, batches: int) -> None:
        self.batches = batches

    def __iter__(self):
        return iter(range(4 * self.batches))

    def __len__(self) -> int:
        return 20


def from_sampler(batches: int, agent: int = 0) -> DataLoader:
    return DataLoader(one_class_each(AGENTS, 20)[agent], batch_size=4, sampler=Sampler(batches))


class Data(pl.LightningDataModule):
    """Agent j has make(batches[j], j)."""

    def __init__(self, batches, make=Stream) -> None:
        super().__init__()
        self.batches, self.make = batches, make

    def train_dataloader(self):
        made = [self.make(n, agent) for agent, n in enumerate(self.batches)]
        loaders = [x if isinstance(x, DataLoader) else DataLoader(x, batch_size=4) for x in made]
        ranks = getattr(self.trainer.strategy, "local_agents", [0])
        return [loaders[rank] for rank in ranks] if len(ranks) > 1 else loaders[ranks[0]]


class Epochs(pl.Callback):
    """What every process has seen, in a file: batches of each epoch, steps, the exception."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.batches, self.exception = folder, [], None

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        self.batches.append(0)

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        self.batches[-1] += 1

    def on_exception(self, trainer, pl_module, exception) -> None:
        self.exception = f"{type(exception).__name__}: {exception}"
        self.save(trainer, pl_module)

    def on_train_end(self, trainer, pl_module) -> None:
        self.save(trainer, pl_module)

    def save(self, trainer, pl_module) -> None:
        found = {"batches": self.batches, "steps": trainer.global_step, "exception": self.exception}
        found["state"] = {name: tensor.detach().clone() for name, tensor in pl_module.state_dict().items()}
        path = self.folder / f"{trainer.global_rank}"
        if not path.exists():  # the main process of fork has an exception too
            torch.save(found, path)


def fit(mode: str, data: Data, folder: Path, uneven: str = "cycle", **options: Any) -> list[dict[str, Any]]:
    """What each process has seen."""
    agents, strategy = len(data.batches), "auto"
    if mode == "fork":
        strategy = cga.DecentralizedStrategy(start_method="fork", uneven=uneven, timeout=timedelta(seconds=30))
    elif mode == "simulated":
        strategy = cga.SimulatedStrategy(agents, uneven=uneven)
    folder.mkdir(parents=True, exist_ok=True)
    options = QUIET | {"max_epochs": 2, "devices": agents if mode == "fork" else 1} | options
    try:
        pl.Trainer(strategy=strategy, callbacks=[Epochs(folder)], **options).fit(Classifier(), datamodule=data)
    finally:
        found = [torch.load(path) for path in sorted(folder.iterdir())]
    return found


def both(data: Data, folder: Path, **options: Any) -> tuple[list[int], int]:
    """Batches of each epoch, and steps: the same for every agent in processes and in a simulation."""
    found = fit("fork", data, folder / "fork", **options)
    assert len(found) == len(data.batches)
    (simulated,) = fit("simulated", data, folder / "simulated", **options)
    assert largest_difference([simulated["state"]], [found[0]["state"]]) <= 1e-6
    assert {(*each["batches"], each["steps"]) for each in (*found, simulated)} == {
        (*simulated["batches"], simulated["steps"])
    }
    return simulated["batches"], simulated["steps"]


@pytest.mark.parametrize(
    "options",
    [
        {"limit_train_batches": 3},
        {"limit_train_batches": 9},
        {"max_steps": 7, "max_epochs": -1},
        {"max_steps": 4, "max_epochs": -1, "accumulate_grad_batches": 2},
        {"max_steps": 20},
    ],
)
def test_streams_of_equal_length_have_the_epochs_of_a_plain_trainer(options, tmp_path) -> None:
    (plain,) = fit("plain", Data([5]), tmp_path / "plain", **options)
    assert both(Data([5, 5]), tmp_path, **options) == (plain["batches"], plain["steps"])


@pytest.mark.parametrize(("uneven", "expected"), [("cycle", [5, 2]), ("min", [2, 2, 2, 1])])
def test_streams_of_unequal_length(uneven, expected, tmp_path) -> None:
    options = {"max_steps": 7, "max_epochs": -1, "uneven": uneven}
    assert both(Data([2, 5]), tmp_path, **options) == (expected, 7)


def test_a_stream_beside_a_loader_with_a_length(tmp_path) -> None:
    def make(batches, agent):
        return Stream(batches, agent) if agent else one_class_each(AGENTS, 4 * batches)[0]

    assert both(Data([5, 3], make), tmp_path, max_steps=7, max_epochs=-1) == ([5, 2], 7)


@pytest.mark.parametrize("mode", ["fork", "simulated"])
@pytest.mark.parametrize(
    ("batches", "message"),
    [([4, 4, 2], "agent 2 has 2 batches, others have more"), ([0, 1, 1], "agent 0 .*has no length, and gave no batch")],
)
def test_streams_that_do_not_fit(mode, batches, message, tmp_path) -> None:
    with pytest.raises(Exception, match=f"(?s){message}"):
        fit(mode, Data(batches), tmp_path, uneven="error", max_steps=10)


@pytest.mark.parametrize("mode", ["fork", "simulated"])
def test_streams_without_an_end_in_sight_are_refused(mode, tmp_path) -> None:
    with pytest.raises(
        Exception, match=r"agent 0, 1 has no length.* or set Trainer\(max_steps=...\) or Trainer\(limit"
    ):
        fit(mode, Data([2, 2]), tmp_path)


# --- loaders that promise more than they give

DRY = "The train loader of agent 1 ran dry after 3 of the 5 batches of this epoch: its length promises 5 .* it gave 3."


@pytest.mark.parametrize("mode", ["fork", "simulated"])
@pytest.mark.parametrize("make", [Promises, from_sampler])
@pytest.mark.parametrize("uneven", ["cycle", "min", "error"])
def test_a_loader_that_gives_less_than_it_promised_is_named_by_every_agent(mode, make, uneven, tmp_path) -> None:
    begin = time.monotonic()
    with pytest.raises(Exception, match=f"(?s){DRY}"):
        fit(mode, Data([5, 3, 5], make), tmp_path, uneven=uneven)
    assert time.monotonic() - begin < 20  # less than the timeout
    found = [torch.load(path) for path in tmp_path.iterdir()]
    assert len(found) == (3 if mode == "fork" else 1)
    for each in found:
        assert each["exception"].startswith("RuntimeError: The train loader of agent 1 ran dry after 3 of the 5")
        assert (each["batches"], each["steps"]) == ([3], 3)


def test_promises_that_nobody_needs(tmp_path) -> None:
    assert both(Data([5, 3], Promises), tmp_path / "limited", limit_train_batches=3) == ([3, 3], 6)
    assert both(Data([5, 8], Promises), tmp_path / "more") == ([5, 5], 10)


SCRIPT = """
import sys
from pathlib import Path
from tests.lightning.test_loaders import Classifier, Data, Epochs, Promises, QUIET, pl
import cga_lightning

if __name__ == "__main__":
    trainer = pl.Trainer(strategy="cga", devices=2, max_epochs=1, callbacks=[Epochs(Path(sys.argv[1]))], **QUIET)
    trainer.fit(Classifier(), datamodule=Data([5, 3], Promises))
"""


def test_a_script_names_the_loader_in_every_process(tmp_path) -> None:
    path, found = tmp_path / "script.py", tmp_path / "found"
    path.write_text(SCRIPT)
    found.mkdir()
    options = {"cwd": ROOT, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "stdin": subprocess.DEVNULL}
    ended = subprocess.run([sys.executable, path, found], capture_output=True, text=True, timeout=100, **options)
    assert ended.returncode != 0 and "The train loader of agent 1 ran dry after 3 of the 5" in ended.stderr
    exceptions = [torch.load(each)["exception"] for each in found.iterdir()]
    assert len(exceptions) == 2 and all("agent 1 ran dry after 3 of the 5" in each for each in exceptions)


# --- rounds


class Listed:
    """A loader of the user's own class."""

    def __init__(self, name: int, batches: int, length: int | None) -> None:
        self.name, self.batches, self.length = name, batches, length

    def __iter__(self):
        return iter([(self.name, i) for i in range(self.batches)])

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError
        return self.length


def cycled(name: int, batches: int, count: int) -> list[tuple[int, int]]:
    return [(name, i % batches) for i in range(count)]


@given(
    loaders=st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=4),
    uneven=st.sampled_from(["cycle", "min"]),
    limits=st.lists(st.integers(0, 9), min_size=1, max_size=4),
)
def test_epochs_last_as_long_as_the_longest_or_the_shortest_loader(loaders, uneven, limits) -> None:
    """Also where an epoch is left early; with a length or without. Loaders start again in every epoch."""
    agreement = LoadersOfSimulation(uneven)
    given = [Listed(name, batches, batches if sized else None) for name, (batches, sized) in enumerate(loaders)]
    agreed = [agreement.agree(loader, settled=True) for loader in given]
    length = (min if uneven == "min" else max)(batches for batches, _ in loaders)
    if all(sized for _, sized in loaders):
        assert {len(loader) for loader in agreed} == {length}
    for limit in limits:
        rounds = list(islice(zip(*agreed, strict=True), limit))
        served = min(limit, length)
        expected = [cycled(name, batches, served) for name, (batches, _) in enumerate(loaders)]
        assert rounds == list(zip(*expected, strict=True))


@given(st.integers(0, 4), st.integers(5, 8), st.integers(1, 8), st.booleans())
def test_a_promise_is_broken_where_the_batch_is_needed(given, promised, other, first) -> None:
    agreement = LoadersOfSimulation("cycle")
    loaders = [Listed(0, given, promised), Listed(1, other, other)][:: 1 if first else -1]
    agreed = [agreement.agree(loader, settled=False) for loader in loaders]
    length, rank = max(promised, other), 0 if first else 1
    rounds = zip(*agreed, strict=True)
    assert len(list(islice(rounds, given))) == given
    message = f"agent {rank} ran dry after {given} of the {length} batches .* promises {promised} .* it gave {given}\\."
    with pytest.raises(RuntimeError, match=message):
        next(rounds)


class Stateful(Listed):
    """Goes on in the middle of an epoch, once."""

    skipped = 0

    def __iter__(self):
        rest, self.skipped = islice(super().__iter__(), self.skipped, None), 0
        return rest

    def state_dict(self) -> dict[str, int]:
        return {"skipped": 2}

    def load_state_dict(self, state: dict[str, int]) -> None:
        vars(self).update(state)


def test_a_loader_that_goes_on_in_the_middle_of_an_epoch_breaks_no_promise() -> None:
    agreement = LoadersOfSimulation("cycle")
    agreed = [agreement.agree(loader, settled=False) for loader in (Stateful(0, 3, 3), Listed(1, 7, 7))]
    assert {"state_dict", "load_state_dict"} <= vars(agreed[0]).keys() and not hasattr(agreed[1], "state_dict")
    agreed[0].load_state_dict(agreed[0].state_dict())
    assert [i for (_, i), _ in islice(zip(*agreed, strict=True), 5)] == [2, 0, 1, 2, 0]
    assert [i for (_, i), _ in zip(*agreed, strict=True)] == [0, 1, 2, 0, 1, 2, 0]


def test_whose_length_is_certain() -> None:
    data = TensorDataset(torch.zeros(8, 1))
    certain = [
        DataLoader(data, shuffle=True),
        DataLoader(data, batch_size=None),
        DataLoader(data, batch_sampler=[[0, 1], [2]]),
        DataLoader(data, sampler=torch.utils.data.WeightedRandomSampler([1.0] * 8, 4)),
    ]
    assert all(map(keeps_its_length, certain))

    class Own(DataLoader):
        def __len__(self) -> int:
            return 9

    doubtful = [DataLoader(Promises(3)), from_sampler(3), Own(data), Listed(0, 3, 3)]
    doubtful += [DataLoader(data, batch_sampler=Sampler(3))]
    assert not any(map(keeps_its_length, doubtful))


def test_workers_end_with_the_epoch() -> None:
    agreement = LoadersOfSimulation("cycle")
    loaders = [DataLoader(one_class_each(AGENTS, n)[0], num_workers=1) for n in (2, 3)]
    agreed = [agreement.agree(loader, settled=False) for loader in loaders]
    rounds = zip(*agreed, strict=True)
    next(rounds)
    children = torch.multiprocessing.active_children()
    assert len(children) == 2
    del rounds
    assert not any(child.is_alive() for child in children)
