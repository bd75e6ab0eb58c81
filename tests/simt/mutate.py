"""Breaks the kernels one line at a time and reports whether the executor notices: ``mutate.py [pattern]``.

Every barrier and fence is removed in turn, typical faults are planted. A mutant is caught by wrong values, by
a broken rule of CUDA, or a data race under TSan. It takes about a minute for each.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from cases import Case, random_case
from checks import assert_solved, assert_sums_equal_terms, project, same
from executor import KERNELS, SCHEDULES, Executor, build
from programs import assert_solves_programs
from sanitize import FLAGS, runtime

from cga_lightning.ops import _plan

# A barrier that collects votes leaves a thread with its own.
BARRIER = re.compile(r"__(syncthreads|syncthreads_or|syncwarp|threadfence)(\(\w*\))")
FAULTS = [
    ("element.cuh", "if (column + i < end)", "if (true)", "no guard at the end of a row"),
    (
        "gram_tile.cuh",
        "const bool inside = column < run.end;",
        "const bool inside = true;",
        "no guard in a tile",
    ),
    ("combine.cuh", "value != 0);", "true);", "rows without a weight are read"),
    ("gram_mma.cuh", "i / 8 % 2 * 2 + j % 2", "i / 8 % 2 + j % 2 * 2", "wrong register of a fragment"),
    ("gram_mma.cuh", "{left[a][0], left[below][0],", "{left[below][0], left[a][0],", "wrong fragment"),
    ("gram_mma.cuh", "add_words<Tf32Mma>(low, high);", "", "a tf32 product is missing"),
    ("problem.cuh", "problem.slot_arrivals[i] = 0;", "(void)i;", "counter not cleared"),
    ("problem.cuh", "problem.ready[i] = 0;", "", "flag not cleared"),
    ("gram_rows.cuh", "if (++steps % kRowsRun == 0) products.close();", "++steps;", "missing flush"),
    ("gram_tile.cuh", "if (++steps % kTileRun == 0) products.close();", "++steps;", "missing flush of a tile"),
    (
        "gram_mma.cuh",
        "if (++steps % Fragments<T>::kRun == 0) products.close();",
        "++steps;",
        "missing flush of tensor-core sums",
    ),
    ("reduce.cuh", "static_cast<unsigned>(groups)", "1u", "the first group solves"),
    ("reduce.cuh", "count * blocks", "count", "tiles of a slot are not waited for"),
    (
        "solve.cuh",
        "other == value && at < index",
        "other == value && at > index",
        "ties go to the highest row",
    ),
    (
        "solve.cuh",
        "sign * column[i == j ? l : i]",
        "column[i == j ? l : i]",
        "unsweep has the sign of a sweep",
    ),
    ("run.cuh", "squares >= 1e-24 &&", "", "lost products are not noticed"),
    ("combine.cuh", "problem.aligned && !*active.wide", "problem.aligned", "weights beyond float32"),
]
TURING = _plan.Device((7, 5), 4)
LIMIT = 900  # seconds for what takes less than one minute
# Mutants that nothing observable depends on, and why.
EXPECTED = {
    "ties go to the highest row": "any row with the least gradient leads to the same solution",
}


class Mutant(NamedTuple):
    name: str
    file: str
    text: str


def mutants() -> Iterator[Mutant]:
    for path in sorted(KERNELS.glob("*.cuh")):
        text = path.read_text()
        for match in BARRIER.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            left = match[2] if match[1] == "syncthreads_or" else "(void)0"
            broken = text[: match.start()] + left + text[match.end() :]
            yield Mutant(f"{path.name}:{line} without __{match[1]}", path.name, broken)
    for name, old, new, fault in FAULTS:
        text = (KERNELS / name).read_text()
        assert text.count(old) >= 1, f"{name} no longer has {old!r}"
        yield Mutant(fault, name, text.replace(old, new, 1))


def _runs() -> list[tuple[Case, dict[str, Any]]]:
    """Return problems that touch every kernel: more slots than blocks and than a group, several segments."""
    short = (0, 512, 1031)
    narrow = random_case(12, short[-1], bounds=short).rows * 2.0**-70
    steep = random_case(3, 520).rows * np.array([[2.0**-70]] * 3 + [[2.0**70]])
    return [
        (random_case(2, 40 * 512 + 3), {}),
        (random_case(8, short[-1], bounds=short), {"passes": 1}),
        (random_case(12, 10 * 512 + 3, bounds=(0, 8 * 512, 10 * 512 + 3)), {"passes": 1}),
        (random_case(9, short[-1], bounds=short, dtype="f64"), {}),
        (Case(narrow, ridge=1e-6), {}),
        (random_case(64, short[-1], bounds=short), {"passes": 2}),
        (random_case(2, 70_000), {"slot_unit": 131_072}),
        (random_case(40, short[-1], bounds=short, dtype="bf16"), {"passes": 1}),
        (random_case(9, short[-1], bounds=short, offset=1), {}),
        (random_case(17, short[-1], bounds=short), {"device": TURING}),
        (Case(steep, ridge=1e-6), {}),
    ]


def probe(library: Path, watched: bool) -> None:
    """Run the problems; an exception means the fault was noticed. TSan gets half of them, once."""
    executor = Executor(library)
    for case, options in _runs()[: 6 if watched else None]:
        schedules = SCHEDULES[-1:] if watched else SCHEDULES
        arrays = [project(executor, case, schedule, **options) for schedule in schedules]
        assert_solved(case, *arrays[0])
        assert all(same(arrays[0][0], other) for other, _ in arrays[1:])
    if not watched:
        assert_sums_equal_terms(executor, 2, length=300_000)
        assert_sums_equal_terms(executor, 12, length=60_000)
        assert_sums_equal_terms(executor, 12, TURING, length=300_000)
    # In 16 steps of 42 programs a row leaves the active set.
    assert_solves_programs(executor, 16, 5 if watched else 42, margin=0.0, ridge=1e-6)
    poisoned = random_case(3, 1031)
    poisoned.rows[0, 5] = np.nan
    result, _ = project(executor, poisoned)
    assert result.status[0] == 2
    assert np.isfinite(result.own).all()


def _survives(mutant: Mutant, folder: Path, kind: str) -> bool:
    kernels = folder / "kernels"
    shutil.copytree(KERNELS, kernels, dirs_exist_ok=True)
    (kernels / mutant.file).write_text(mutant.text)
    library = build(["-O1", "-w", *FLAGS.get(kind, "").split()], kernels=kernels, root=folder)
    return _survives_watched(library) if kind == "thread" else _survives_plain(library)


def _survives_plain(library: Path) -> bool:
    """Probe in a fork: all is imported there, and a loop that never ends can be ended."""
    process = get_context("fork").Process(target=_quietly, args=(library,))
    process.start()
    process.join(LIMIT)
    process.kill()
    process.join()
    return process.exitcode == 0


def _quietly(library: Path) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    probe(library, watched=False)


def _survives_watched(library: Path) -> bool:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "LD_PRELOAD": runtime("libtsan.so"),
        "TSAN_OPTIONS": "halt_on_error=1 exitcode=66",
    }
    command = ["setarch", "-R", sys.executable, __file__, "--probe", str(library)]
    try:
        found = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        return False
    return found.returncode == 0


def main(pattern: str = "") -> int:
    """Report every mutant whose name matches; the share of barriers caught decides the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        unbroken = Mutant("", "kernels.cuh", (KERNELS / "kernels.cuh").read_text())
        if not all(_survives(unbroken, Path(folder), kind) for kind in ("", "thread")):
            sys.exit("The kernels as they are do not pass: no verdict would mean anything.")
    barriers = caught = 0
    for mutant in mutants():
        if not re.search(pattern, mutant.name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            if not _survives(mutant, Path(folder), ""):
                verdict = "caught: values or rules"
            elif not _survives(mutant, Path(folder), "thread"):
                verdict = "caught: data race"
            else:
                verdict = f"SURVIVES{': ' + EXPECTED[mutant.name] if mutant.name in EXPECTED else ''}"
        if ".cuh" in mutant.name:
            barriers += 1
            caught += "caught" in verdict
        print(f"{mutant.name}: {verdict}", flush=True)
    print(f"{caught} of {barriers} barriers and fences caught")
    return int(caught < 0.8 * barriers)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--probe"]:
        probe(Path(sys.argv[2]), watched=True)
    else:
        sys.exit(main(*sys.argv[1:]))
