"""One logged value for all simulated agents, where each of them logs under the same name.

A metric of torchmetrics accumulates over agents by itself; its value of the step is the mean over them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cga_lightning.copies import to_device

# Of LightningModule.log after name and value, in order.
_OPTIONS = (
    *("prog_bar", "logger", "on_step", "on_epoch", "reduce_fx", "enable_graph", "sync_dist"),
    *("sync_dist_group", "add_dataloader_idx", "batch_size", "metric_attribute", "rank_zero_only"),
)
_STEP_VALUE = "_forward_cache"  # what torchmetrics has computed from the last batch alone
REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"max": torch.max, "min": torch.min, "sum": torch.sum}
"""What `reduce_fx` may ask for over batches or agents, but for the mean."""


class LogMean:
    """Collects what a module logs for several agents, and logs the mean over agents once.

    The mean is weighted by batch size; for reduce_fx "max", "min" and "sum" it is that over agents.
    """

    def __init__(self, log: Any) -> None:
        self._log = log
        self._calls: dict[str, tuple[list[Any], list[int], dict[str, Any]]] = {}
        self._metrics: dict[str, Any] = {}
        self._batch_size = 1

    def next_batch(self, batch: Any) -> None:
        """The batch of the agent whose turn it is."""
        sizes = [leaf.shape[0] for leaf in tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim]
        self._batch_size = sizes[0] if sizes else 1

    def log(self, name: str, value: Any, *arguments: Any, **options: Any) -> None:
        """Takes the place of LightningModule.log."""
        options = options_of(*arguments, **options)
        if not isinstance(value, Tensor | int | float):
            self._metrics[name], value = value, getattr(value, _STEP_VALUE, None)
            value = value if isinstance(value, Tensor) else None
        values, sizes, _ = self._calls.setdefault(name, ([], [], options))
        values.append(None if value is None else torch.as_tensor(value).detach())
        sizes.append(options.get("batch_size") or self._batch_size)

    def flush(self) -> None:
        """Log every name once."""
        for name, (values, sizes, options) in self._calls.items():
            known = [(value, size) for value, size in zip(values, sizes, strict=True) if value is not None]
            mean = _combined(known, options.get("reduce_fx")) if known else None
            metric = self._metrics.get(name)
            if metric is not None and mean is not None:
                object.__setattr__(metric, _STEP_VALUE, mean)
            self._log(name, mean if metric is None else metric, **options | {"batch_size": sum(sizes)})


def options_of(*arguments: Any, **options: Any) -> dict[str, Any]:
    """By name: what a call `log(name, value, *arguments, **options)` says beside name and value."""
    return {**dict(zip(_OPTIONS, arguments, strict=False)), **options}


@contextmanager
def log_mean(module: nn.Module) -> Iterator[LogMean]:
    """Inside, `module.log` collects; at the end of the block it is called once for every name."""
    collected = LogMean(module.log)
    object.__setattr__(module, "log", collected.log)
    try:
        yield collected
    finally:
        object.__delattr__(module, "log")
    collected.flush()


def mean_output(outputs: list[Any]) -> Any:
    """What the loop gets for the agents' outputs: the mean loss, and lists of everything else."""
    if isinstance(outputs[0], Tensor):
        return torch.stack([output.detach() for output in outputs]).mean()
    return {
        name: mean_output([output[name] for output in outputs]) if name == "loss" else [o[name] for o in outputs]
        for name in outputs[0]
    }


def _combined(known: Sequence[tuple[Tensor, int]], reduce_fx: Any) -> Tensor:
    name = reduce_fx if isinstance(reduce_fx, str) else getattr(reduce_fx, "__name__", "mean")
    stacked = torch.stack([value if value.is_floating_point() else value.float() for value, _ in known])
    if name in REDUCTIONS:
        return REDUCTIONS[name](stacked)
    weights = to_device(torch.tensor([size for _, size in known], dtype=torch.float64), stacked.device)
    return (weights @ stacked.double() / weights.sum()).to(stacked.dtype)
