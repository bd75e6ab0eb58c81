"""`cga-lightning compare`: the same task by several algorithms, and tables of what they reach.

    cga-lightning compare --algorithms cga compcga dpsgd --seeds 0 1 2 --jobs 2
    cga-lightning compare comparison.yaml --output results

Every combination of the lists that are given is one run: agents simulated in one process. An algorithm, topology,
partition, model, optimizer or data set is a name, or in the file a class path with arguments:

    algorithms: [cga, {class_path: CGA, init_args: {margin: 0.5}}]
    model: {class_path: my_package.MyModule, init_args: {width: 64}}

Into the output folder go runs.csv, one row per run, tables.md, curves.png and comparison.yaml, all settings. Runs that
are there are not repeated: an interrupted comparison goes on where it stopped. `cga-lightning report FOLDER` makes a
web page of it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from cga_lightning.cli.comparison import curves, images, networks, runs, tables, task, trial
from cga_lightning.cli.comparison.specs import label
from cga_lightning.cli.extras import tools
from cga_lightning.partition import PARTITIONS
from cga_lightning.topology import TOPOLOGIES

Object = dict[str, Any] | str


def main(arguments: Sequence[str]) -> None:
    """Make all runs that are not in the output folder yet, then show those asked for."""
    options = parse(arguments)
    path = Path(options.output, "runs.csv")
    torch.set_num_threads(1)  # from the start: a process that has run several threads cannot be forked
    try:
        _check(options)
        wanted = combinations(options)
        missing = runs.missing(path, wanted)
        data = _prepared(options, missing)
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise SystemExit(f"cga-lightning compare: {error}") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    if data is not None:
        with _progress() as progress:
            runs.make(path, missing, data, options.jobs, progress)
    show(options, runs.rows(path, wanted))


def _prepared(options: Any, missing: Sequence[trial.Run]) -> task.Task | None:
    """The data, if there is anything to do; refuses what cannot run before anything is trained.

    Raises:
        ValueError, TypeError: a combination cannot run.
        FileNotFoundError: the data are not there.
    """
    if not missing:
        return None
    data = task.load(options.data, options.data_root, options.download, options.validation, options.test_samples)
    for run in missing:
        trial.refuse(run)
    for run in {label(run["optimizer"]): run for run in missing}.values():
        task.accuracy(module := trial.module_for(run, data), [module.state_dict()], data.test[:1])
    return data


def show(options: Any, rows: Sequence[trial.Run]) -> None:
    """Write the tables, the picture and the settings; print the tables."""
    folder = Path(options.output)
    shown = rows if options.all_rates else tables.with_best_rates(rows)
    text = tables.markdown(shown, [] if options.all_rates else options.lrs)
    (folder / "tables.md").write_text(text)
    (folder / "comparison.yaml").write_text(_settings(options))
    curves.draw(shown, folder / "curves.png")
    print(text)


def combinations(options: Any) -> list[trial.Run]:
    """The settings of every run: all combinations of the lists."""
    fixed = {name: getattr(options, name) for name in trial.FIXED}
    methods = [_method(spec, options.optimizer) for spec in options.algorithms]
    lists = [getattr(options, name) for name in ("topologies", "agents", "partitions", "lrs", "seeds")]
    return [
        {**fixed, **dict(zip(trial.GRID, (*method, *values), strict=True))}
        for method, *values in itertools.product(methods, *lists)
    ]


def _method(spec: Object, optimizer: Object) -> tuple[Object, Object]:
    """An algorithm may come with an optimizer of its own."""
    if not isinstance(spec, Mapping):
        return spec, optimizer
    own = {name: value for name, value in spec.items() if name != "optimizer"}
    return own, spec.get("optimizer", optimizer)


def parse(arguments: Sequence[str]) -> Any:
    """The options, from the command line and from files."""
    with tools("cga-lightning compare"):
        import jsonargparse
    parser = jsonargparse.ArgumentParser(
        prog="cga-lightning compare", description=__doc__, formatter_class=_formatter()
    )
    file: Any = jsonargparse.ActionConfigFile  # type: ignore[attr-defined]
    parser.add_argument("--config", action=file, metavar="FILE", help="a YAML file with these options")
    _add_options(parser)
    given = list(arguments)
    if given and not given[0].startswith("-"):
        given.insert(0, "--config")  # a file that stands first
    parsed = parser.parse_args(given)
    return SimpleNamespace(**{name: _plain(value) for name, value in vars(parsed).items()})


def _add_options(parser: Any) -> None:
    def add(name: str, kind: Any, default: Any, text: str, **more: Any) -> None:
        parser.add_argument(f"--{name}", type=kind, default=default, help=text, **more)

    many = {"nargs": "+"}
    add("algorithms", Object, ["cga", "compcga", "dpsgd"], "what to compare; optimizer: in one is for it alone", **many)
    add("topologies", Object, ["ring"], f"of {', '.join(TOPOLOGIES)}, or class paths", **many)
    add("agents", int, [5], "numbers of agents", **many)
    add("partitions", Object, ["by_label"], f"of {', '.join(PARTITIONS)}, or paths of functions", **many)
    add("lrs", float, [0.01], "learning rates; tables have the best of each method, on validation data", **many)
    add("seeds", int, [0], "of models, partitions and batches", **many)
    parser.add_argument("--all_rates", action="store_true", help="tables have all learning rates")
    add("data", Object, "digits", f"of {', '.join(images.DATASETS)}, or class paths of train: and test:")
    add("data_root", str | None, None, "the folder where the data lie")
    parser.add_argument("--download", action="store_true", help="fetch them into data_root if they are not there")
    add("model", Object, "cnn", f"of {', '.join(networks.NETWORKS)}, or the class path of a LightningModule")
    add("optimizer", Object, "momentum", f"of {', '.join(task.OPTIMIZERS)}, a class path, or module for its own")
    add("batch_size", int, 32, "samples per step and agent")
    add("steps", int, 200, "optimizer steps of every run")
    add("evaluations", int, 20, "tests per run, evenly spaced")
    add("last", int, 5, "accuracies are averaged over that many last evaluations")
    add("validation", float, 0.1, "share of the training data to choose learning rates on")
    add("test_samples", int, 2000, "how many of the test data to use; 0 for all")
    add("jobs", int, os.cpu_count() or 1, "runs at a time, each on one thread")
    add("output", str, "comparison", "the folder to write to")


def _formatter() -> Any:
    from jsonargparse import DefaultHelpFormatter

    class Formatter(DefaultHelpFormatter):  # type: ignore[misc,unused-ignore]
        """Keeps the lines of the description."""

        def _fill_text(self, text: str, width: int, indent: str) -> str:
            return text

    return Formatter


def _check(options: Any) -> None:
    if options.data in (*images.TORCHVISION, "image_folder") and not options.data_root:
        raise ValueError(f"--data {options.data} needs --data_root DIR, the folder where it lies or is to be put.")
    if options.steps < 1 or options.evaluations < 1 or options.steps % options.evaluations:
        raise ValueError(f"steps {options.steps} must be a multiple of evaluations {options.evaluations}.")
    if not 1 <= options.last <= options.evaluations:
        raise ValueError(f"last {options.last} must be at least 1 and at most evaluations {options.evaluations}.")
    if options.jobs < 1 or options.test_samples < 0:
        raise ValueError(f"jobs must be 1 or more, test_samples 0 or more: {options.jobs}, {options.test_samples}.")


def _settings(options: Any) -> str:
    """What makes these runs again; not where they lie and how many are made at a time."""
    with tools("cga-lightning compare"):
        import yaml
    values = {
        name: value for name, value in vars(options).items() if name not in ("config", "jobs", "output", "data_root")
    }
    return str(yaml.safe_dump(values, sort_keys=False, default_flow_style=None))


def _plain(value: Any) -> Any:
    """With dicts for what jsonargparse takes for its own."""
    if hasattr(value, "as_dict"):
        return _plain(value.as_dict())
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else value


@contextmanager
def _progress() -> Iterator[runs.Progress]:
    """A bar over the steps of all runs that are to be made, with the time left."""
    with tools("cga-lightning compare"):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    columns = (BarColumn(), TextColumn("{task.description}"), TextColumn("left"), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), speed_estimate_period=600)
    shown = bar.add_task("", total=None)

    def update(standing: runs.Standing) -> None:
        bar.start()  # not before: processes are forked from this one, and a running bar is a thread
        made = f"{standing.runs} of {standing.of_runs} runs"
        bar.update(shown, completed=standing.steps, total=standing.of_steps, description=made)

    try:
        yield update
    finally:
        bar.stop()
