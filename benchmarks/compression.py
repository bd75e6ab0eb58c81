"""What compressed messages cost: signs, four bits and ternary digits, with error feedback, for 1e6 parameters.

    python benchmarks/compression.py --limit 0.1

The yardstick is a forward and backward pass of the CNN of the paper with one batch. The gradient is written just before
it is compressed, as in a step, but the error memory was last touched before the pass. Beside every compiled kernel runs
the plain torch that it stands for. Runs alternate, and figures are medians of CPU time.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from rich.console import Console
from rich.table import Table
from workload import NETWORKS, Instant, fail_above, forward_backward, medians, timed

from cga_lightning.compression import Compressor, ErrorFeedback, Rounded, ScaledSign, Ternary, levels, sign
from cga_lightning.core.layout import FlatLayout

COMPRESSORS = (ScaledSign(), Rounded(bits=4), Ternary())
PASS = ("pass of the CNN", "", "")


@contextmanager
def plain_torch() -> Iterator[None]:
    """Inside, compressors do as if nothing was compiled."""
    compiled = [(module, module._operators) for module in (sign, levels)]
    for module, _ in compiled:
        module._operators = SimpleNamespace()
    yield
    for module, operators in compiled:
        module._operators = operators


def both_ends(channel: Compressor, gradient: torch.Tensor, layout: FlatLayout) -> tuple[Instant, Instant]:
    """Times to compress and to decompress."""
    compress = timed(lambda: channel.compress(gradient, layout))
    wire = channel.compressor.compress(gradient, layout)
    return compress, timed(lambda: channel.decompress(wire, layout))


def measure(args: argparse.Namespace) -> dict[tuple[str, str, str], list[Instant]]:
    """Times of a pass and of both ends of a message, by compressor, implementation and end."""
    torch.manual_seed(0)
    example = NETWORKS["cnn"]()
    batch = [torch.randn(args.batch_size, 1, 28, 28), torch.randint(10, (args.batch_size,))]
    parameters = [torch.randn(p.shape) for p in NETWORKS["wide"]().parameters()]
    layout = FlatLayout(parameters)
    gradient, channels = layout.zeros(), [ErrorFeedback(compressor) for compressor in COMPRESSORS]
    times: dict[tuple[str, str, str], list[Instant]] = {}
    for _ in range(args.warmup + args.repeats):
        for channel in channels:
            name = type(channel.compressor).__name__
            times.setdefault(PASS, []).append(timed(lambda: forward_backward(example, batch)))
            layout.write(parameters, out=gradient)
            ends = {"C++": both_ends(channel, gradient, layout)}
            with plain_torch():
                ends["plain torch"] = both_ends(channel, gradient, layout)
            for how, instants in ends.items():
                for end, instant in zip(("compress", "decompress"), instants, strict=True):
                    times.setdefault((name, how, end), []).append(instant)
    return {name: instants[args.warmup :] for name, instants in times.items()}


def main() -> None:
    """Measure, and fail above the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--batch-size", type=int, default=32, help="images of the pass (default: %(default)s)")
    add("--repeats", type=int, default=50, help="runs to measure (default: %(default)s)")
    add("--warmup", type=int, default=5, help="runs before these (default: %(default)s)")
    add("--limit", type=float, help="exit with status 1 if both ends of a compiled one, against the pass, are above")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cpu = {name: medians(instants).cpu for name, instants in measure(args).items()}
    table = Table("with error feedback", "", "", "CPU time", "of a pass")
    for name, value in cpu.items():
        table.add_row(*name, f"{value:.2f} ms", f"{value / cpu[PASS]:.1%}")
    Console().print(table)
    for compressor in (type(compressor).__name__ for compressor in COMPRESSORS):
        ratio = sum(cpu[compressor, "C++", end] for end in ("compress", "decompress")) / cpu[PASS]
        fail_above(args.limit, ratio, f"Both ends of {compressor}, against a pass,")


if __name__ == "__main__":
    main()
