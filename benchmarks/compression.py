"""What CompCGA's messages cost: one bit per element, with error feedback, for 1e6 parameters.

    python benchmarks/compression.py --limit 0.1

The yardstick is a forward and backward pass of the CNN of the paper with one batch. The gradient is written just before
it is compressed, as in a step, but the error memory was last touched before the pass. Runs alternate, and figures are
medians of CPU time.
"""

from __future__ import annotations

import argparse

import torch
from rich.console import Console
from rich.table import Table
from workload import NETWORKS, Instant, fail_above, forward_backward, medians, timed

from cga_lightning.compression import ErrorFeedback, ScaledSign
from cga_lightning.core.layout import FlatLayout


def measure(args: argparse.Namespace) -> dict[str, list[Instant]]:
    """Times of a pass and of both ends of a message, by name."""
    torch.manual_seed(0)
    example = NETWORKS["cnn"]()
    batch = [torch.randn(args.batch_size, 1, 28, 28), torch.randint(10, (args.batch_size,))]
    parameters = [torch.randn(p.shape) for p in NETWORKS["wide"]().parameters()]
    layout = FlatLayout(parameters)
    gradient, channel = layout.zeros(), ErrorFeedback(ScaledSign())
    times: dict[str, list[Instant]] = {"pass of the CNN": [], "compress": [], "decompress": []}
    for _ in range(args.warmup + args.repeats):
        times["pass of the CNN"].append(timed(lambda: forward_backward(example, batch)))
        layout.write(parameters, out=gradient)
        times["compress"].append(timed(lambda: channel.compress(gradient, layout)))
        wire = channel.compressor.compress(gradient, layout)
        times["decompress"].append(timed(lambda wire=wire: channel.decompress(wire, layout)))
    return {name: instants[args.warmup :] for name, instants in times.items()}


def main() -> None:
    """Measure, and fail above the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--batch-size", type=int, default=32, help="images of the pass (default: %(default)s)")
    add("--repeats", type=int, default=50, help="runs to measure (default: %(default)s)")
    add("--warmup", type=int, default=5, help="runs before these (default: %(default)s)")
    add("--limit", type=float, help="exit with status 1 if both ends together, against the pass, are above")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cpu = {name: medians(instants).cpu for name, instants in measure(args).items()}
    one_pass = cpu["pass of the CNN"]
    ratio = (cpu["compress"] + cpu["decompress"]) / one_pass
    table = Table("ScaledSign with error feedback", "CPU time", "of a pass")
    for name, value in cpu.items():
        table.add_row(name, f"{value:.2f} ms", f"{value / one_pass:.1%}")
    Console().print(table)
    fail_above(args.limit, ratio, "Compression and decompression, against a pass,")


if __name__ == "__main__":
    main()
