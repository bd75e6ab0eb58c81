"""`cga-lightning check`: try a module and its data for two steps, simulated, before a long run or five sites.

    cga-lightning check train.py -- --width 64
    cga-lightning check my_package.MyModule --module_args '{"width": 64}' --data my_package.MyData

Says what works, what is refused and why, how much memory an agent takes and how many bytes it sends per step. A script
runs up to its first call of Trainer.fit, whose module and data are taken; what stands behind that is not run. Every
agent gets its own call of train_dataloader, as in processes, unless the data know of agents (PartitionedDataModule, or
a list with one loader for each). Nothing is written.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningDataModule, LightningModule

from cga_lightning.algorithms import ALGORITHMS
from cga_lightning.cli.comparison.specs import built
from cga_lightning.cli.trying import STEPS, Subject, Tried, attempt, subject_of_script
from cga_lightning.topology import TOPOLOGIES


def main(arguments: Sequence[str]) -> None:
    """Print what was found; the exit status is 1 if something is refused."""
    given = _parse(arguments)
    sys.path.insert(0, os.getcwd())
    try:
        subject = _subject(given)
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise SystemExit(f"cga-lightning check: {error}") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice about a run of two steps
        tried = attempt(subject, given.algorithm, given.topology, given.agents)
    print("\n".join(_lines(tried, given)))
    if tried.refused:
        raise SystemExit(1)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="cga-lightning check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("subject", metavar="SCRIPT_OR_CLASS", help="a Python file that calls Trainer.fit, or the path of a module")
    add("--module_args", metavar="JSON", type=json.loads, default={}, help="arguments of the class of the module")
    add("--data", metavar="CLASS", help="the path of a LightningDataModule; the module's own loaders if not given")
    add("--data_args", metavar="JSON", type=json.loads, default={}, help="its arguments")
    add("--agents", metavar="N", type=int, default=5, help="default: %(default)s")
    add("--algorithm", metavar="NAME", choices=ALGORITHMS, default="cga", help=f"of {', '.join(ALGORITHMS)}")
    add("--topology", metavar="NAME", choices=TOPOLOGIES, default="ring", help=f"of {', '.join(TOPOLOGIES)}")
    parser.add_argument_group("after --", "all further arguments are those of the script")
    given = list(arguments)
    own = given.index("--") if "--" in given else len(given)
    return parser.parse_args(given[:own], argparse.Namespace(script_arguments=given[own + 1 :]))


def _subject(given: argparse.Namespace) -> Subject:
    if given.subject.endswith(".py"):
        return subject_of_script(Path(given.subject), given.script_arguments)
    make: Callable[..., Any] = built
    module = {"class_path": given.subject, "init_args": given.module_args}
    data = {"class_path": given.data, "init_args": given.data_args}
    return Subject(
        make("module", module, LightningModule, {}, "__main__"),
        make("data", data, LightningDataModule, {}, "__main__") if given.data else None,
        {},
    )


def _lines(tried: Tried, given: argparse.Namespace) -> list[str]:
    """What was found, for a person."""
    lines = [f"{given.agents} agents, {given.algorithm}, {given.topology}; {STEPS} steps, simulated", ""]
    lines += [f"  works    {what}" for what in tried.works]
    lines += [f"  refused  {what}: {why}" for what, why in tried.refused.items()]
    lines += [f"  not tried  {what}" for what in tried.left_out]
    for title, sizes in (
        ("memory per agent, activations aside", tried.memory),
        ("sent per agent and step", tried.sent),
    ):
        if sizes:
            lines += ["", f"{title}: {_size(sum(sizes.values()))}"]
            lines += [f"  {_size(size):>10}  {name}" for name, size in sizes.items()]
    if tried.sent:
        lines += [
            "",
            f"Next: Trainer(devices={given.agents}, strategy=DecentralizedStrategy({given.algorithm!r}, "
            f"{given.topology!r})), one process per agent.",
        ]
    return lines


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
