"""Do the gradients of one batch at K models come faster together (torch.func.vmap) than one after the other?

    python benchmarks/batched.py

The loop is what agents do for their K neighbors. Both make K forward and backward passes over the same images; vmap
turns the convolutions into grouped ones and the linear layers into batched products. Dropout is off, and both give the
same gradients, which is checked. Runs alternate, and figures are medians of CPU time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.functional import cross_entropy
from workload import NETWORKS, forward_backward, medians, timed

Gradients = dict[str, Tensor]


def together(models: list[nn.Module], batch: list[Tensor]) -> Callable[[], Gradients]:
    """All gradients by one batched pass; the parameters are stacked beforehand."""
    parameters, _ = stack_module_state(models)
    images, labels = batch

    def loss(params: Gradients) -> Tensor:
        return cross_entropy(functional_call(models[0], params, (images,)), labels)

    gradients = vmap(grad(loss))
    detached = {name: tensor.detach() for name, tensor in parameters.items()}
    return lambda: gradients(detached)


def compare(network: str, neighbors: int, args: argparse.Namespace) -> tuple[float, float]:
    """Milliseconds of the loop and of the batched pass."""
    torch.manual_seed(0)
    models = [NETWORKS[network]().eval() for _ in range(neighbors)]
    batch = [torch.randn(args.batch_size, 1, 28, 28), torch.randint(10, (args.batch_size,))]
    batched = together(models, batch)

    def loop() -> None:
        for model in models:
            forward_backward(model, batch)

    loop()
    for name, stacked in batched().items():
        one_by_one = torch.stack([model.get_parameter(name).grad for model in models])
        torch.testing.assert_close(stacked, one_by_one, rtol=1e-3, atol=1e-5)
    times = [(timed(loop), timed(batched)) for _ in range(args.repeats)]
    return tuple(medians(column).cpu for column in zip(*times, strict=True))


def main() -> None:
    """Measure all networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="which (default: all)")
    add("--neighbors", nargs="+", type=int, default=[2, 4, 9], help="models per batch (default: %(default)s)")
    add("--batch-size", type=int, default=32, help="images in the batch (default: %(default)s)")
    add("--repeats", type=int, default=15, help="runs of each (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("network", "models", "one by one", "together", "speed-up")
    for network in args.network:
        for neighbors in args.neighbors:
            loop, batched = compare(network, neighbors, args)
            row = (f"{loop:.2f} ms", f"{batched:.2f} ms", f"{loop / batched:.2f}")
            table.add_row(network, str(neighbors), *row)
    Console().print(table)


if __name__ == "__main__":
    main()
