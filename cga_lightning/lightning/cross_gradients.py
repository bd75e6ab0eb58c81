"""The user's training_step, run again for the model of a neighbor and outside of Lightning's loop."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor

from cga_lightning.core.loss_scaling import rescale, scaler_of
from cga_lightning.lightning.buffers import BufferShapes
from cga_lightning.passes.collectives import POINT_TO_POINT, ForbidCollectives, raise_collective
from cga_lightning.passes.silence import Silence

if TYPE_CHECKING:
    from cga_lightning.lightning.agent_strategy import AgentStrategy


class CrossGradients:
    """Runs passes at other models: no callbacks, no progress, no loggers, and no collectives.

    Args:
        strategy: whose module, precision and optimizer take part.
        training_step: the strategy's, of one micro-batch.
    """

    def __init__(self, strategy: AgentStrategy, training_step: Callable[..., Any]) -> None:
        self._strategy = strategy
        self._training_step = training_step
        self._in_own_pass = False
        self._in_cross_pass = False
        self._watched: set[str] = set()
        self._shapes: BufferShapes | None = None

    def start(self) -> None:
        """A fit begins."""
        self._shapes = BufferShapes(self._strategy.module)

    def own_pass(self, *args: Any, **kwargs: Any) -> Any:
        """The user's step on the own model, as Lightning has asked for it."""
        self._in_own_pass = True
        try:
            with self._watch("own", POINT_TO_POINT):
                output = self._training_step(*args, **kwargs)
        finally:
            self._in_own_pass = False
        if self._shapes is not None:
            self._shapes.check()
        return output

    def backward(self, *arguments: Any) -> None:
        """Forward and backward of one micro-batch at the model that the module holds now."""
        with self._cross_pass():
            precision = self._strategy.precision_plugin
            loss = rescale(self.loss(self._training_step(*arguments)), scaler_of(precision))
            precision.backward(loss, self._strategy.module, self._strategy.optimizers[0])

    @contextmanager
    def _cross_pass(self) -> Iterator[None]:
        trainer = self._strategy.module.trainer
        loggers, self._in_cross_pass = trainer.loggers, True
        trainer.loggers = list[Any](Silence() for _ in loggers)
        try:
            with self._watch("cross"):
                yield
        finally:
            trainer.loggers, self._in_cross_pass = loggers, False

    @contextmanager
    def _watch(self, kind: str, names: Collection[str] | None = None) -> Iterator[None]:
        """Forbid collectives in the first pass of each kind only, since that slows down every operator."""
        needless = kind in self._watched or not dist.is_initialized()
        with nullcontext() if needless else ForbidCollectives(names):
            yield
        self._watched.add(kind)

    def loss(self, output: Any) -> Tensor:
        """The loss to differentiate, from what training_step has returned, as Lightning's loop computes it.

        Raises:
            RuntimeError: there is none.
        """
        loss = output.get("loss") if isinstance(output, dict) else output
        if not isinstance(loss, Tensor):
            raise RuntimeError(
                "training_step must return the loss, a tensor or a dict with the key 'loss', at every step: the "
                f"neighbors wait for this agent. Found {type(loss).__name__}."
            )
        accumulated = self._strategy.module.trainer.accumulate_grad_batches
        return loss if accumulated == 1 else loss / accumulated

    def output(self, output: Any) -> dict[str, Any]:
        """What hooks see of it, as Lightning's loop hands it to them."""
        extra = output if isinstance(output, dict) else {}
        return {"loss": self.loss(output).detach().clone(), **{k: v for k, v in extra.items() if k != "loss"}}

    def forbid_in_passes(self, collective: str) -> None:
        """Raise if a training step is running, whoever's model it is for."""
        if self._in_own_pass or self._in_cross_pass:
            raise_collective(collective)

    def forbid_in_cross_passes(self, collective: str) -> None:
        """Raise if a training step is running for a neighbor's model."""
        if self._in_cross_pass:
            raise_collective(collective)

    def forbid_steps_in_passes(self, *_: Any) -> None:
        """Raise if a training step is running, whoever's model it is for: an optimizer steps once it has ended.

        Raises:
            RuntimeError: says what to do instead.
        """
        if self._in_own_pass or self._in_cross_pass:
            raise RuntimeError(
                f"{type(self._strategy.module).__name__}.training_step has called optimizer.step() itself, but it runs "
                "again for the model of every neighbor, and the step follows when their gradients are there. Return "
                "the loss from training_step, and let Lightning call backward(), step() and zero_grad()."
            )
