"""Many runs: those that are not in the file yet, over cores; each is written when it is done."""

from __future__ import annotations

import csv
import itertools
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cga_lightning.cli.comparison.task import Task
from cga_lightning.cli.comparison.trial import FIXED, GRID, RESULTS, Run, quietly, text, train
from cga_lightning.lightning.run_record import append_rows

COLUMNS = (*GRID, *FIXED, *RESULTS)
WHOLE = ("agents", "seed", "batch_size", "steps", "evaluations", "last", "test_samples", "tested", "bytes")
TEXTS = ("topology", "partition", "algorithm", "optimizer", "data", "model", "curve")
POLL = 0.3
"""Seconds between two looks at how far the runs are."""

_task: Task
_steps: Any  # how many steps the processes have made in all, of all runs


class Standing(NamedTuple):
    """How far the runs are that were missing.

    Attributes:
        steps, of_steps: made, of all.
        runs, of_runs: made, of all.
    """

    steps: int
    of_steps: int
    runs: int
    of_runs: int


Progress = Callable[[Standing], None]
"""Is told now and then."""


def key(run: Run) -> tuple[str, ...]:
    """What tells runs apart."""
    return tuple(text(run[name]) for name in (*FIXED, *GRID))


def read(path: Path) -> list[Run]:
    """The rows that were written so far.

    Raises:
        ValueError: the file has other columns, such as that of another version.
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise ValueError(f"{path} is no table of this version of `compare`; choose another output folder.")
        return [{name: _value(name, value) for name, value in row.items()} for row in reader]


def append(path: Path, run: Run) -> None:
    """Add one row, at the end."""
    append_rows(path, [{name: text(run[name]) for name in COLUMNS}])


def missing(path: Path, wanted: Sequence[Run]) -> list[Run]:
    """Those of the wanted runs that are not in the file yet."""
    done = set(map(key, read(path)))
    return [run for run in wanted if key(run) not in done]


def rows(path: Path, wanted: Sequence[Run]) -> list[Run]:
    """The rows of the wanted runs, which are all in the file."""
    done = {key(run): run for run in read(path)}
    return [done[key(run)] for run in wanted]


def make(path: Path, runs: Sequence[Run], task: Task, jobs: int, progress: Progress) -> None:
    """Make runs, and add the row of each to the file when it is done.

    Every run is made on one thread, so that its result does not depend on how many are made at a time.

    Args:
        path: the file of rows.
        runs: settings of runs.
        task: the data.
        jobs: how many processes make runs at a time; 1 for this process alone.
        progress: is told how far they are.
    """
    torch.set_num_threads(1)
    made = _in_turn if jobs == 1 else _in_processes
    for run in made(runs, task, jobs, progress):
        append(path, run)


def _in_turn(runs: Sequence[Run], task: Task, _: int, progress: Progress) -> Iterator[Run]:
    quietly()
    before = 0
    for made, run in enumerate(runs):
        steps = itertools.count(before + 1)

        def tick(steps: Iterator[int] = steps, made: int = made) -> None:
            progress(Standing(next(steps), _steps_of(runs), made, len(runs)))

        yield train(run, task, tick)
        before += run["steps"]


def _in_processes(runs: Sequence[Run], task: Task, jobs: int, progress: Progress) -> Iterator[Run]:
    """In the order in which they are done; forked where the system can, so that they share the data."""
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else None)
    steps, total, made = context.Value("q", 0), _steps_of(runs), 0
    with ProcessPoolExecutor(min(jobs, len(runs)), context, _start, (task, steps)) as pool:
        waiting: set[Future[Run]] = {pool.submit(_train, run) for run in runs}
        try:
            while waiting:
                finished, waiting = wait(waiting, POLL, FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
                made += len(finished)
                progress(Standing(steps.value, total, made, len(runs)))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _steps_of(runs: Sequence[Run]) -> int:
    return sum(run["steps"] for run in runs)


def _start(task: Task, steps: Any) -> None:
    """Of a process that makes runs."""
    global _task, _steps
    _task, _steps = task, steps
    torch.set_num_threads(1)
    quietly()


def _train(run: Run) -> Run:
    return train(run, _task, _tick)


def _tick() -> None:
    with _steps.get_lock():
        _steps.value += 1


def _value(name: str, written: str) -> Any:
    """What `text` has written."""
    if name in TEXTS:
        return json.loads(written) if written.startswith("{") else written
    return int(written) if name in WHOLE else float(written)
