"""What agents in different processes must agree on: the model, the length of an epoch, and what they have measured.

Callbacks decide by logged values to stop, to save and to change the learning rate, and must decide alike everywhere.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor, nn

from cga_lightning.agent_strategy import AgentStrategy
from cga_lightning.communication import communication_error
from cga_lightning.loaders import AgreedLoader, agreed_length, sized_length
from cga_lightning.log_mean import options_of
from cga_lightning.module_state import mean_state

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule
    from pytorch_lightning.strategies import DDPStrategy

    class _Base(AgentStrategy, DDPStrategy): ...
else:
    _Base = AgentStrategy

_log = logging.getLogger(__name__)


def log_shared(module: nn.Module) -> None:
    """From now on `module.log` logs the mean over all agents what is logged per epoch, until `log_own`."""
    log: Callable[..., None] = type(module).log.__get__(module)  # type: ignore[attr-defined]

    def shared(name: str, value: Any, *arguments: Any, **options: Any) -> None:
        options = options_of(*arguments, **options)
        if not options.get("on_step") and not options.get("rank_zero_only"):
            options["sync_dist"] = True
        log(name, value, **options)

    object.__setattr__(module, "log", shared)


def log_own(module: nn.Module) -> None:
    """Undo `log_shared`."""
    vars(module).pop("log", None)


def check_lengths(lengths: Sequence[int | None], stage: str) -> None:
    """Refuse evaluation loaders of which only some have batches, given the number of batches of each agent.

    Raises:
        ValueError: says which agents have none.
    """
    empty = [str(rank) for rank, length in enumerate(lengths) if length == 0]
    if 0 < len(empty) < len(lengths):
        raise ValueError(
            f"The {stage} loader of agent {', '.join(empty)} has no batch, but those of others have. All agents "
            "evaluate together: give every agent data, or none."
        )


class DifferenceWarning:
    """Tells once for every metric that agents have logged different values of it."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def look_at(self, metrics: Sequence[Mapping[str, float]]) -> None:
        """Compare the metrics of all agents."""
        for name in metrics[0]:
            values = [found.get(name, math.nan) for found in metrics]
            if name not in self._told and any(value != values[0] for value in values[1:] if not math.isnan(value)):
                self._told.add(name)
                _log.warning(
                    f"The agents have logged different values of {name!r}: {', '.join(f'{v:g}' for v in values)}. "
                    f"Callbacks that monitor it would act on the value of their own agent: use self.log({name!r}, ..., "
                    "sync_dist=True)."
                )


class AgreeingProcesses(_Base):
    """Mixed into a strategy with one agent per process: all that the processes do together, but for the steps."""

    timeout: timedelta

    def __init__(self, *arguments: Any, timeout: timedelta, **base: Any) -> None:
        super().__init__(*arguments, timeout=timeout, **base)
        self.timeout = timeout
        self._differences = DifferenceWarning()

    @contextmanager
    def _together(self, name: str) -> Iterator[None]:
        """Inside, a collective of this name fails with an error that says where."""
        step = max([agent.step for agent in self._agents_here()], default=0)
        try:
            yield
        except RuntimeError as error:
            what = f"complete the collective {name!r} with all other agents at step {step}"
            raise communication_error(self.global_rank, what, "the others", self.timeout, error) from error

    def _gathered(self, value: Any, name: str = "gather") -> list[Any]:
        values: list[Any] = [None] * self.agents
        with self._together(name):
            dist.all_gather_object(values, value)
        return values

    def _mean_over_processes(self, tensor: Tensor) -> Tensor:
        with self._together("mean"):
            dist.all_reduce(tensor)
        return tensor.div_(self.agents)

    @property
    def _alone(self) -> bool:
        trainer = self._module._trainer  # None in the main process of fork and spawn
        return trainer is None or trainer.state.status == "interrupted"

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """As usual; where a callback has put a moving average in place of the consensus, with its mean over agents."""
        if not self._alone:
            self._compare_monitored()
            if "averaging_state" in checkpoint:  # that of WeightAveraging
                averages = checkpoint["state_dict"]
                mean = mean_state([list(averages.values())], self._mean_over_processes)
                checkpoint = {**checkpoint, "state_dict": dict(zip(averages, mean, strict=True))}
        super().save_checkpoint(checkpoint, filepath, storage_options)

    # --- on the model and the data

    def _refuse_sharded(self) -> None:
        sharded = [name for name, parameter in self._module.named_parameters() if hasattr(parameter, "device_mesh")]
        sharded += [name for name, module in self._module.named_modules() if "FullySharded" in type(module).__name__]
        if sharded:
            raise ValueError(
                f"{sharded[0]} is sharded over processes (FSDP or tensor parallelism), but every agent needs its whole "
                "model. Leave the module as it is in configure_model()."
            )

    def _check_same_model(self) -> None:
        """All agents need parameters and buffers of the same names, shapes and dtypes, and the same settings."""
        settings = [f"{name} {getattr(self, name)!r}" for name in ("algorithm", "topology", "uneven", "eval_model")]
        mine = settings + _signature(self._module)
        signatures: list[list[str]] = self._gathered(mine, "agreement on the model, which is new or has changed here")
        for rank, theirs in enumerate(signatures):
            difference = [f"agent 0 has {a}, agent {rank} has {b}" for a, b in _unequal(signatures[0], theirs)]
            if difference:
                raise ValueError(
                    f"All agents must train the same kind of model with the same settings, but {difference[0]}. Build "
                    "the LightningModule and the strategy with the same arguments on every agent."
                )

    def _agree_on_length(self, loader: Any) -> Any:
        lengths: list[int | None] = self._gathered(sized_length(loader))
        length = agreed_length(lengths, self.uneven)
        return loader if lengths[self.global_rank] == length else AgreedLoader(loader, lambda: length)

    def _check_evaluation(self, loader: Any) -> None:
        check_lengths(self._gathered(sized_length(loader)), "test" if self._trainer.testing else "validation")

    # --- on what they have measured

    def on_validation_start(self) -> None:
        """Log means over agents: neither their own data nor their own models may lead them apart."""
        super().on_validation_start()
        log_shared(self._module)

    def on_validation_end(self) -> None:
        """Warn if they disagree in spite of that."""
        log_own(self._module)
        self._compare_monitored()
        super().on_validation_end()

    def on_test_start(self) -> None:
        """As in validation."""
        super().on_test_start()
        log_shared(self._module)

    def on_test_end(self) -> None:
        """As in validation."""
        log_own(self._module)
        super().on_test_end()

    def teardown(self) -> None:
        """After an exception too."""
        log_own(self._module)
        super().teardown()

    def _compare_monitored(self) -> None:
        callbacks: list[Any] = self._trainer.callbacks  # type: ignore[attr-defined]
        monitors = [getattr(callback, "monitor", None) for callback in callbacks]
        monitors += [config.monitor for config in self.lr_scheduler_configs if config.reduce_on_plateau]
        metrics = self._trainer.callback_metrics
        mine = {name: float(metrics[name]) for name in monitors if name in metrics}
        self._differences.look_at(self._gathered(mine, "comparison of metrics"))


def _signature(module: LightningModule) -> list[str]:
    tensors: dict[str, Tensor] = {
        f"{'parameter' if p.requires_grad else 'frozen'} {name}": p for name, p in module.named_parameters()
    }
    tensors |= {f"buffer {name}": buffer for name, buffer in module.named_buffers()}
    return [f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in tensors.items()]


def _unequal(first: list[str], second: list[str]) -> list[tuple[str, str]]:
    pairs = zip_longest(first, second, fillvalue="no further tensor")
    return [(a, b) for a, b in pairs if a != b]
