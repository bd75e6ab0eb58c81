"""What a simulated CGA step costs beside the gradients that it cannot do without, and how that grows with the agents.

    python benchmarks/step.py                                          # five agents, 1e6 parameters
    python benchmarks/step.py --network mlp lenet5 cnn wide            # small networks: everything else counts more
    python benchmarks/step.py --network cnn wide --agents 5 40         # time per agent, and peak memory
    python benchmarks/step.py --ddp                                    # two processes, against DDP

Each of the N agents differentiates its own batch at its own model and at those of its neighbors: N + (number of
directed edges) forward and backward passes per step. After each step as many bare passes run in a plain loop over
one copy of the model and the same batches, for five agents at most; nothing is trained there. A step counts from the
end of these to the end of the next batch, so it includes Lightning's loop, the batches, the exchange, the projection,
mixing and the optimizer. Every setting runs in processes of its own, alternately with the others, so that peak memory
is its own and the noise of the machine is shared. Figures are medians of CPU time per agent; the ratio is that of each
step to the passes just after it.

With --ddp, CGA is compared with DDP that accumulates two batches per step, so that both make two passes per process and
step, and DPSGD with plain DDP. All train in two processes of one thread over gloo, again and again in turn, and each
figure is the median over all steps of process 0.
"""

from __future__ import annotations

import argparse
import copy
import resource
from multiprocessing import get_context
from statistics import median
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from rich.console import Console
from rich.table import Table
from workload import (
    NETWORKS,
    Instant,
    classifier,
    fail_above,
    forward_backward,
    medians,
    random_batches,
    timed,
    trainer,
)

from cga_lightning import SimulatedStrategy, ops

BARE_AGENTS = 5


class Setting(NamedTuple):
    """One row of the table."""

    network: str
    agents: int


class Measured(NamedTuple):
    """The times of single steps and of the bare passes after them, per agent; megabytes."""

    steps: list[Instant]
    bare: list[Instant]
    peak: float


class Stopwatch(pl.Callback):
    """Times every step, and after each of them the bare passes."""

    def __init__(self) -> None:
        self.steps: list[Instant] = []
        self.bare: list[Instant] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The bare passes have a model of their own."""
        self.net = copy.deepcopy(pl_module.net)
        self.topology = trainer.strategy.topology
        self.start = Instant.now()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A step is over."""
        self.steps.append(self.start.elapsed().per(len(batch)))
        few = batch[:BARE_AGENTS]
        self.bare.append(timed(lambda: self._bare_passes(few)).per(len(few)))
        self.start = Instant.now()

    def _bare_passes(self, batches: list[Any]) -> None:
        for rank, batch in enumerate(batches):
            for _ in range(1 + len(self.topology.neighbors(rank))):
                forward_backward(self.net, batch)


def measure(setting: Setting, args: argparse.Namespace) -> Measured:
    """Train the agents on random images for one epoch, in a process of its own."""
    torch.set_num_threads(args.threads)
    stopwatch = Stopwatch()
    strategy = SimulatedStrategy(setting.agents, "cga", args.topology)
    loaders = [random_batches(args.warmup + args.steps, args.batch_size) for _ in range(setting.agents)]
    trainer(devices=1, strategy=strategy, callbacks=stopwatch).fit(classifier(setting.network), loaders)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kilobytes on Linux
    return Measured(stopwatch.steps[args.warmup :], stopwatch.bare[args.warmup :], peak)


def alternately(args: argparse.Namespace) -> dict[Setting, Measured]:
    """All settings in turn, again and again."""
    settings = [Setting(network, agents) for network in args.network for agents in args.agents]
    rounds = settings * args.rounds
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        runs = pool.starmap(measure, [(setting, args) for setting in rounds], chunksize=1)
    together = {}
    for setting in settings:
        steps, bare, peaks = zip(*(run for of, run in zip(rounds, runs, strict=True) if of == setting), strict=True)
        together[setting] = Measured(sum(steps, []), sum(bare, []), max(peaks))
    return together


def report(args: argparse.Namespace, measured: dict[Setting, Measured]) -> None:
    """Print the table, and fail above a limit."""
    table = Table("network", "agents", "step per agent", "bare passes", "ratio", "growth", "peak memory")
    worst = {"ratio": 0.0, "growth": 0.0, "peak memory": 0.0}
    for setting, run in measured.items():
        step, bare = medians(run.steps).cpu, medians(run.bare).cpu
        first = measured[setting._replace(agents=args.agents[0])]
        growth = step / medians(first.steps).cpu
        ratio = median(one.cpu / passes.cpu for one, passes in zip(run.steps, run.bare, strict=True))
        table.add_row(
            *(setting.network, str(setting.agents), f"{step:.2f} ms", f"{bare:.2f} ms", f"{ratio:.3f}"),
            *(f"{growth:.3f}", f"{run.peak:.0f} MB"),
        )
        for name, value in (("ratio", ratio), ("growth", growth), ("peak memory", run.peak)):
            worst[name] = max(worst[name], value)
    Console().print(f"{args.topology}, batch {args.batch_size}, {args.threads} thread(s), {ops.backend('cpu')}")
    Console().print(table)
    fail_above(args.limit, worst["ratio"], "The ratio of a step to its bare passes")
    fail_above(args.limit_growth, worst["growth"], "The time per agent against that at the fewest agents")
    fail_above(args.limit_memory, worst["peak memory"], "The peak memory in MB")


class StepTimes(pl.Callback):
    """Times every optimizer step of process 0, and sends the times to the process that waits for them."""

    def __init__(self, accumulate: int, warmup: int) -> None:
        self.accumulate = accumulate
        self.warmup = warmup
        self.steps: list[Instant] = []
        self.queue = get_context("fork").SimpleQueue()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self.start = Instant.now()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A step is over after the last batch that it accumulates."""
        if (batch_idx + 1) % self.accumulate == 0:
            self.steps.append(self.start.elapsed())
            self.start = Instant.now()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The process ends now."""
        if trainer.global_rank == 0:
            self.queue.put(self.steps[self.warmup :])


def run_processes(network: str, strategy: str, accumulate: int, args: argparse.Namespace) -> list[Instant]:
    """Train in two processes; DDP deals one data set out to both, an agent has its own."""
    times = StepTimes(accumulate, args.warmup)
    loader = random_batches((args.warmup + args.steps) * accumulate**2, args.batch_size)
    options = {"devices": 2, "strategy": strategy, "accumulate_grad_batches": accumulate, "callbacks": times}
    trainer(**options).fit(classifier(network), loader)
    steps: list[Instant] = times.queue.get()
    return steps


def against_ddp(args: argparse.Namespace) -> None:
    """Print the table of both strategies in two processes, and fail above the limit."""
    torch.set_num_threads(1)
    table = Table("network", "algorithm", "clock", "step", "DDP step, as many passes", "ratio")
    worst = 0.0
    for network in args.network:
        settings = [("cga_fork", 1), ("ddp_fork", 2), ("dpsgd_fork", 1), ("ddp_fork", 1)]
        steps: dict[tuple[str, int], list[Instant]] = {setting: [] for setting in settings}
        for _ in range(args.rounds):
            for setting in settings:
                steps[setting] += run_processes(network, *setting, args)
        for ours, theirs in (settings[:2], settings[2:]):
            first, second = medians(steps[ours]), medians(steps[theirs])
            for clock, own, ddp in zip(Instant._fields, first, second, strict=True):
                name = ours[0].removesuffix("_fork")
                table.add_row(network, name, clock, f"{own:.1f} ms", f"{ddp:.1f} ms", f"{own / ddp:.3f}")
            worst = max(worst, first.cpu / second.cpu)
    Console().print(f"2 processes, batch {args.batch_size}, one thread each")
    Console().print(table)
    fail_above(args.limit, worst, "The ratio of a step to a DDP step, by CPU time,")


def main() -> None:
    """Measure, and fail above the limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--network", nargs="+", choices=NETWORKS, default=["wide"], help="what to train (default: %(default)s)")
    add("--agents", nargs="+", type=int, default=[5], help="numbers of agents (default: %(default)s)")
    add("--topology", default="ring", help="who talks to whom (default: %(default)s)")
    add("--batch-size", type=int, default=32, help="samples per agent and step (default: %(default)s)")
    add("--steps", type=int, default=15, help="steps to measure in each run (default: %(default)s)")
    add("--warmup", type=int, default=3, help="steps before these (default: %(default)s)")
    add("--rounds", type=int, default=2, help="runs of each setting (default: %(default)s)")
    add("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    add("--ddp", action="store_true", help="two processes of CGA and of DPSGD against two of DDP")
    add("--limit", type=float, help="exit with status 1 if a ratio is above")
    add("--limit-growth", type=float, help="... if the time per agent, against the first of --agents, is above")
    add("--limit-memory", type=float, help="... if the peak memory in MB is above")
    args = parser.parse_args()
    if args.ddp:
        against_ddp(args)
    else:
        report(args, alternately(args))


if __name__ == "__main__":
    main()
