"""Time the projection beside other ways to compute it, against the memory floor measured in the same run.

    python benchmarks/projection.py                     # the targets, then the table; one thread
    python benchmarks/projection.py --targets           # the targets only
    python benchmarks/projection.py --rows 4 --sizes 1000000

Other ways are timed if they are installed: ``pip install quadprog torchjd qpsolvers proxsuite qpth``.

The floor is the time to read every row and the own gradient once for the inner products, to read them once
more and to write the result, (2(K + 1) + 1) d elements, at the bandwidth of a plain read. All rows conflict,
so that none is skipped. Routes take turns: a round times each once, and a read before and after them.
Times are medians over the rounds, in milliseconds of CPU time of the process; a ratio is the median of the
ratios within a round, so that other work on the machine slows both of its sides. Nothing is discarded.

For CUDA the bytes of a call are counted from the launch plan, with and without a device.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import projection_bytes
import torch
from projection_routes import installed
from torch import Tensor

from cga_lightning.ops import backend, project_

Timed = Callable[[], object]
READ_BYTES = 1 << 28
FLOOR = "memory floor"


class Problem:
    """K conflicting cross-gradients [K, d] and an own gradient [d], with the bounds of the layers."""

    def __init__(self, rows: int, bounds: list[int]) -> None:
        generator = torch.Generator().manual_seed(rows)
        self.bounds = bounds
        self.matrix = torch.randn(rows + 1, bounds[-1], generator=generator)  # own gradient first
        self.matrix[0] -= self.matrix[1:].sum(0)
        self.start = self.matrix[0].clone()

    @property
    def own(self) -> Tensor:
        """The own gradient, [d]."""
        return self.matrix[0]

    @property
    def cross(self) -> Tensor:
        """The cross-gradients, [K, d]."""
        return self.matrix[1:]

    def floor_bytes(self) -> int:
        """What must at least go through memory."""
        return (2 * len(self.matrix) + 1) * self.own.numel() * self.own.element_size()

    def routes(self) -> dict[str, Timed]:
        """Ours per model and per layer, and every other route that is installed."""
        offsets = torch.tensor(self.bounds)
        ours = f"ours ({backend('cpu')})"
        timed: dict[str, Timed] = {ours: lambda: project_(self.cross, self.own)}
        if len(self.bounds) > 2:
            timed[f"{ours}, per layer"] = lambda: project_(self.cross, self.own, offsets=offsets)
        for name, route in installed().items():
            rows = self.matrix if name == "TorchJD DualProj" else self.cross
            timed[name] = lambda route=route, rows=rows: route(rows, self.own, self.bounds)
        return timed

    def calls(self) -> int:
        """How often to call a route in a round: small problems are timed with warm caches, as in training."""
        return max(1, min(50, 10**6 // self.matrix.numel()))

    def restore(self) -> None:
        """Undo an in-place projection."""
        self.own.copy_(self.start)


class Times:
    """Times in ms by route, one for each round."""

    def __init__(self, rounds: dict[str, list[float]]) -> None:
        self._rounds = rounds

    def median(self, name: str) -> float:
        """Return the median time of a route."""
        return median(self._rounds[name])

    def ratio(self, name: str, other: str) -> float:
        """Return the median over the rounds of the time of one route over that of another."""
        return median(one / two for one, two in zip(self._rounds[name], self._rounds[other], strict=True))


def measure(problem: Problem, routes: dict[str, Timed], rounds: int) -> Times:
    """Return the times of each route and of the memory floor."""
    buffer = torch.ones(READ_BYTES // 4)
    samples: dict[str, list[float]] = {name: [] for name in [*routes, FLOOR]}
    for _ in range(rounds):
        before = timed(buffer.sum)
        for name, route in routes.items():
            samples[name].append(median(timed(route, problem.restore) for _ in range(problem.calls())))
        read = (before + timed(buffer.sum)) / 2
        samples[FLOOR].append(read * problem.floor_bytes() / READ_BYTES)
    return Times(samples)


def timed(function: Timed, before: Timed = lambda: None) -> float:
    """Return the CPU time of one call in ms."""
    before()
    start = time.process_time()
    function()
    return 1e3 * (time.process_time() - start)


def resnet18_bounds() -> list[int]:
    """Return where the 62 parameter tensors of ResNet-18 begin and end in a flat gradient."""
    from torchvision.models import resnet18

    bounds = [0]
    for parameter in resnet18().parameters():
        bounds.append(bounds[-1] + parameter.numel())
    return bounds


def targets(rounds: int) -> None:
    """Print the figures the project promises for one thread of a CPU."""
    flat, layers = Problem(4, [0, 10_000_000]), Problem(4, resnet18_bounds())
    ours = f"ours ({backend('cpu')})"
    times = measure(flat, {ours: flat.routes()[ours]}, 3 * rounds)
    report("K=4, d=1e7: multiple of the memory floor", times.ratio(ours, FLOOR), "<=", 1.3)
    per_layer = f"{ours}, per layer"
    routes = layers.routes()
    times = measure(layers, {name: routes[name] for name in (ours, per_layer)}, 3 * rounds)
    report("ResNet-18, K=4: per-layer time over whole-model time", times.ratio(per_layer, ours), "<=", 1.1)
    for name, least in (("TorchJD DualProj", 2.5), ("published per layer", 25.0)):
        if name in routes:
            times = measure(layers, {each: routes[each] for each in (per_layer, name)}, rounds)
            report(f"ResNet-18, K=4: times faster than {name}", times.ratio(name, per_layer), ">=", least)


def report(what: str, value: float, sign: str, bound: float) -> None:
    """Print one promised figure."""
    kept = value <= bound if sign == "<=" else value >= bound
    print(f"{what:58s} {value:7.2f}   target {sign} {bound:<5g} {'kept' if kept else 'MISSED'}")


def table(title: str, problem: Problem, rounds: int) -> None:
    """Print time and multiple of the floor of every route."""
    routes = problem.routes()
    times = measure(problem, routes, rounds)
    print(f"\n{title}: floor {times.median(FLOOR):.3f} ms")
    for name in routes:
        print(f"  {name:28s} {times.median(name):10.3f} ms {times.ratio(name, FLOOR):8.2f} x floor")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", action="store_true", help="print the promised figures only")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 64], help="numbers of cross-gradients K")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7], help="lengths d")
    parser.add_argument("--largest", type=float, default=4e7, help="leave out problems of more numbers K d")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each route")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.threads} thread(s), {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}")
    targets(options.rounds)
    if options.targets:
        return
    table("ResNet-18, K=4", Problem(4, resnet18_bounds()), options.rounds)
    for rows in options.rows:
        for size in options.sizes:
            if rows * size > options.largest:
                print(f"\nK={rows}, d={size}: left out, more than --largest {options.largest:g} numbers")
            else:
                table(f"K={rows}, d={size}", Problem(rows, [0, size]), options.rounds)
    projection_bytes.table(options.rows, options.sizes)


if __name__ == "__main__":
    main()
