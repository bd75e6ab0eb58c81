"""What a report of a run shows and no logger keeps: the graph, the agents' labels, the settings, every agent alone."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch_lightning import Callback

from cga_lightning.lightning.internals import is_accumulating
from cga_lightning.lightning.refusals import refuse_other_strategies
from cga_lightning.partition import counts

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

Measure = Callable[["LightningModule"], Mapping[str, float]]

RECORD, AGENTS = "run.json", "agents.csv"


class RunRecord(Callback):
    """Writes what `cga-lightning report` shows of a run beside its logs.

    `run.json` has the graph with its mixing weights, how many samples of each class every agent has (of a
    `PartitionedDataModule` whose labels are found), and the settings. `agents.csv` has, for every few steps, the
    seconds since the start, the bytes that an agent has sent so far, and what `measure` finds for every agent.

    Args:
        measure: called as `measure(module)`, in evaluation mode and without gradients, while the module holds the own
            model of one agent after the other; returns numbers by name, such as {"accuracy": 0.9}. The random streams
            are put back afterwards.
        every_n_steps: how often, beside the start and the end of training. Measuring costs one test per agent.
        folder: where to write; that of the Trainer's first logger if None, and without a logger its
            `default_root_dir`.

    Raises:
        ValueError: every_n_steps is less than 1.
        TypeError: the strategy has no agents.
    """

    def __init__(
        self, measure: Measure | None = None, *, every_n_steps: int = 50, folder: str | os.PathLike[str] | None = None
    ) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}.")
        self.measure = measure
        self.every_n_steps = every_n_steps
        self.folder = folder
        self._last = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is known now, and measure the model that all start from."""
        refuse_other_strategies("RunRecord", trainer.strategy)
        self._start, self._last = time.perf_counter(), -1
        folder = trainer.log_dir if self.folder is None else self.folder
        self._folder = Path(folder or trainer.default_root_dir)
        if trainer.is_global_zero:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / RECORD).write_text(json.dumps(_record(trainer, pl_module), indent=1, default=repr))
            (self._folder / AGENTS).unlink(missing_ok=True)
        self._write(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure when the step is due. A collective: every process comes here at the same steps."""
        if trainer.global_step % self.every_n_steps == 0 and not is_accumulating(trainer):
            self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the agents' models after the last step."""
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        step, strategy = trainer.global_step, trainer.strategy
        if step == self._last:
            return
        self._last = step
        sent: float = sum(strategy.network_traffic().values()) / strategy.agents  # type: ignore[attr-defined]
        values = strategy.of_every_agent(self.measure or _nothing)  # type: ignore[attr-defined]
        if trainer.is_global_zero:
            seconds = round(time.perf_counter() - self._start, 3)
            common = {"step": step, "seconds": seconds, "bytes": round(sent)}
            append_rows(self._folder / AGENTS, [{**common, "agent": rank, **of} for rank, of in enumerate(values)])


def _nothing(module: LightningModule) -> dict[str, float]:
    return {}


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows of the same columns to the end of a CSV file; a new one begins with their names."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if new:
            writer.writeheader()
        writer.writerows(rows)


def _record(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    strategy: Any = trainer.strategy
    return {
        "algorithm": repr(strategy.algorithm),
        "topology": repr(strategy.topology),
        "agents": strategy.agents,
        "mixing_matrix": strategy.topology.mixing_matrix().tolist(),
        "spectral_gap": strategy.topology.spectral_gap(),
        "labels": _labels(trainer, strategy.agents),
        "settings": _settings(trainer, module),
    }


def _labels(trainer: Trainer, agents: int) -> dict[str, Any] | None:
    """The classes, and how many samples of each the agents have `[N, C]`; None where that cannot be known."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    try:
        classes, table = counts(data.classes(), data.parts(agents))
    except (AttributeError, TypeError, ValueError):  # other data, or samples that have no classes
        return None
    return {"classes": [str(name) for name in classes], "counts": table.tolist()}


def _settings(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = trainer.optimizers[0]
    given = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    strategy: Any = trainer.strategy
    return {
        "module": type(module).__name__,
        "hyperparameters": {name: str(value) for name, value in module.hparams.items()},
        "trainable parameters": sum(parameter.numel() for parameter in parameters),
        "optimizer": f"{type(optimizer).__name__}({', '.join(f'{name}={value}' for name, value in given.items())})",
        "data": type(data).__name__,
        "batch size per agent": getattr(data, "batch_size", None),
        "strategy": type(strategy).__name__,
        "precision": str(trainer.precision),
        "most steps": trainer.max_steps,
        "most epochs": trainer.max_epochs,
        "accumulated batches": trainer.accumulate_grad_batches,
        "gradient clipping": trainer.gradient_clip_val,
        "seed": os.environ.get("PL_GLOBAL_SEED"),
    }
