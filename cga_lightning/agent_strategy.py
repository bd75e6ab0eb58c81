"""What both strategies share: refusals, data, cross-gradient passes, and evaluation at the consensus."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cga_lightning import algorithms
from cga_lightning import topology as topologies
from cga_lightning.agent import Agent
from cga_lightning.algorithms import Algorithm
from cga_lightning.checkpoint import AgentCheckpoints, Resume
from cga_lightning.communication import Communicator
from cga_lightning.finite import FiniteCheck
from cga_lightning.flat import FlatLayout
from cga_lightning.loaders import Uneven
from cga_lightning.module_state import ModuleState, State, mean_state, squared_distance
from cga_lightning.sandbox import Silence
from cga_lightning.stepping import trainable, unscale
from cga_lightning.topology import Topology
from cga_lightning.window import ForbidCollectives, Window, raise_collective

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer
    from pytorch_lightning.strategies import SingleDeviceStrategy

    class _Base(AgentCheckpoints, SingleDeviceStrategy): ...  # any complete strategy, for the type checker
else:
    _Base = AgentCheckpoints

EvalModel = Literal["consensus", "own"]


class AgentStrategy(_Base):
    """Mixed into a strategy of Lightning, whose hooks it extends.

    Args:
        algorithm: an `Algorithm`, or its name.
        topology: a `Topology`, bound to a number of agents or not, or its name.
        uneven: what happens when the agents' train loaders have different lengths, see `agreed_length`.
        eval_model: validate with the mean of all agents' models ("consensus") or with each agent's "own".
        resume: on fit(ckpt_path=...), every agent goes on from its own part of the checkpoint ("agents"), or all
            start from the model in it ("consensus").
    """

    def __init__(
        self,
        algorithm: Algorithm | str,
        topology: Topology | str,
        uneven: Uneven,
        eval_model: EvalModel,
        resume: Resume,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        for name, value, allowed in (
            ("uneven", uneven, ("cycle", "min", "error")),
            ("eval_model", eval_model, ("consensus", "own")),
            ("resume", resume, ("agents", "consensus")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
        self.algorithm = algorithms.from_name(algorithm) if isinstance(algorithm, str) else algorithm
        self.topology = topologies.from_name(topology) if isinstance(topology, str) else topology
        for name, kind in (("algorithm", Algorithm), ("topology", Topology)):
            if not isinstance(getattr(self, name), kind):
                found = getattr(self, name)
                raise TypeError(f"{name} must be a name or an object of a subclass of {kind.__name__}, got {found!r}.")
        self.uneven = uneven
        self.eval_model = eval_model
        self.resume = resume
        self._to_restore = {}
        self._layer_sync: Any = None  # set by the Trainer
        self._communicator: Communicator | None = None
        self._consensus: State | None = None
        self._agents_differ = False  # True from the first step of fit until every agent takes over the consensus
        self._in_training_step = False
        self._in_cross_pass = False
        self._checked_collectives = False
        self._finite: dict[int, FiniteCheck] = {}

    # --- what the two strategies answer differently

    @property
    @abstractmethod
    def agents(self) -> int:
        """The number N of agents of the run."""

    @property
    @abstractmethod
    def local_agents(self) -> Sequence[int]:
        """The ranks of the agents of this process."""

    @abstractmethod
    def _states(self) -> list[State]:
        """The tensors of the agents of this process."""

    @abstractmethod
    def _agents_here(self) -> list[Agent]:
        """The agents of this process; none before the first training step."""

    @abstractmethod
    def _agree_on_length(self, loader: Any) -> Any:
        """The train loader, serving as many batches per epoch as those of all other agents."""

    def _check_evaluation(self, loader: Any) -> None:
        """Refuse a loader for validation or test that is empty for some agents only."""

    def _mean_over_processes(self, tensor: Tensor) -> Tensor:
        return tensor

    # --- start

    def _bind(self, agents: int) -> None:
        self.topology = self.topology.bind(agents)
        self.algorithm.check(self.topology)

    @property
    def traffic(self) -> Counter[str]:
        """Payload bytes that the agents of this process have sent so far, by name of the exchange."""
        return Counter() if self._communicator is None else Counter(self._communicator.traffic)

    def _configure_launcher(self) -> None:
        """In Trainer(...), once it knows all of its arguments: the first moment to refuse one."""
        if self._layer_sync is not None:
            raise ValueError(
                "Trainer(sync_batchnorm=True) would average batch statistics over all agents in every pass, also in "
                "those with a neighbor's model. Remove it, or use GroupNorm instead of BatchNorm."
            )
        super()._configure_launcher()

    def connect(self, model: LightningModule) -> None:
        """Refuse modules that cannot work, and leave the users' samplers alone."""
        trainer = model.trainer
        trainer._accelerator_connector.use_distributed_sampler = False  # an agent's data is its own
        if trainer.state.fn == "fit":
            _refuse_module(model)
        super().connect(model)

    def setup_optimizers(self, trainer: Trainer) -> None:
        """Refuse parameters that cannot be exchanged, and optimizers that evaluate the loss more than once."""
        FlatLayout(trainable(self._module))
        self._finite = {rank: FiniteCheck(rank) for rank in self.local_agents}
        super().setup_optimizers(trainer)
        for optimizer in self.optimizers:
            if isinstance(optimizer, torch.optim.LBFGS):
                raise ValueError(
                    "LBFGS evaluates the loss several times per step, but a decentralized step exchanges gradients "
                    "once. Use a first-order optimizer such as torch.optim.SGD or torch.optim.AdamW."
                )

    @property
    def _module(self) -> LightningModule:
        module = self.lightning_module
        assert module is not None
        return module

    @property
    def _trainer(self) -> Trainer:
        return self._module.trainer

    # --- data

    def process_dataloader(self, dataloader: Any) -> Any:
        """Let every agent serve the same number of train batches per epoch."""
        dataloader = super().process_dataloader(dataloader)
        loop = self._trainer.fit_loop
        training = self._trainer.training and (loop._combined_loader is None or loop._should_reload_train_dl)
        if not training:
            if self._trainer.evaluating or self._trainer.sanity_checking:
                self._check_evaluation(dataloader)
            return dataloader
        self.restore_agents()
        return self._agree_on_length(dataloader)

    # --- gradients at other models

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The user's step on the own model."""
        self._in_training_step = True
        try:
            return super().training_step(*args, **kwargs)
        finally:
            self._in_training_step = False

    def _gradient(self, window: Window, parameters: Sequence[nn.Parameter], layout: FlatLayout, at: Tensor) -> Tensor:
        watch = dist.is_initialized() and not self._checked_collectives
        check = ForbidCollectives() if watch else nullcontext()  # type: ignore[no-untyped-call]
        with self._cross_pass(), check:
            gradient = window.gradient(self._module, parameters, layout, self._forward_backward, at)
        self._checked_collectives = True
        return unscale(gradient, self._scaler)

    @contextmanager
    def _cross_pass(self) -> Iterator[None]:
        self._in_cross_pass = True
        loggers = self._trainer.loggers
        self._trainer.loggers = list[Any](Silence() for _ in loggers)
        try:
            yield
        finally:
            self._in_cross_pass = False
            self._trainer.loggers = loggers

    def _forward_backward(self, *arguments: Any) -> None:
        """One micro-batch of the user's module outside of the loop: no callbacks, no progress."""
        loss = self._loss(super().training_step(*arguments))
        if self._scaler is not None:
            loss = self._scaler.scale(loss)
        self.precision_plugin.backward(loss, self._module, self.optimizers[0])

    def _take_gradient(self, agent: Agent, gradient: Tensor, scaler: torch.amp.GradScaler | None) -> None:
        """Give `agent` its own gradient of this step, as backward has left it."""
        agent.grad = unscale(gradient, scaler)
        if scaler is None:  # which skips the steps that are not finite
            self._finite[agent.rank].look_at(agent.grad, agent.step)

    @property
    def _scaler(self) -> torch.amp.GradScaler | None:
        """That of 16-mixed precision. Every agent has its own scale, so gradients travel and are projected without."""
        return getattr(self.precision_plugin, "scaler", None)

    def _loss(self, output: Any) -> Tensor:
        """The loss to differentiate, from what training_step returned, as Lightning's loop computes it."""
        loss = output.get("loss") if isinstance(output, dict) else output
        if not isinstance(loss, Tensor):
            raise RuntimeError(
                "training_step must return the loss, a tensor or a dict with the key 'loss', at every step: the "
                f"neighbors wait for this agent. Found {type(loss).__name__}."
            )
        return loss / self._trainer.accumulate_grad_batches

    def _check_window(self, window: Window) -> None:
        if len(window) >= self._trainer.accumulate_grad_batches:
            raise RuntimeError(
                "The closure ran without an optimizer step, so the neighbors' gradients would be stale: the "
                "LightningModule's optimizer_step() must call optimizer.step(closure=...) each time it is called. To "
                "step less often use Trainer(accumulate_grad_batches=...)."
            )

    def all_gather(self, tensor: Tensor, group: Any | None = None, sync_grads: bool = False) -> Tensor:
        """As in Lightning, but not inside training_step."""
        self._forbid_in_training_step("all_gather")
        with self._together("all_gather"):
            return super().all_gather(tensor, group, sync_grads)

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """As in Lightning, but not inside training_step."""
        self._forbid_in_training_step("barrier")
        if not self._alone:
            with self._together("barrier"):
                super().barrier(*args, **kwargs)

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """As in Lightning, but not inside training_step."""
        self._forbid_in_training_step("broadcast")
        if self._alone:
            return obj
        with self._together("broadcast"):
            return super().broadcast(obj, src)

    def reduce(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        """As in Lightning, but not in a pass with a neighbor's model."""
        if self._in_cross_pass:
            raise_collective("reduce")
        with self._together("reduce"):
            return super().reduce(tensor, *args, **kwargs)

    def _together(self, name: str) -> AbstractContextManager[None]:
        """Around a collective of this name."""
        return nullcontext()

    def _forbid_in_training_step(self, name: str) -> None:
        if self._in_training_step or self._in_cross_pass:
            raise_collective(name)

    # --- evaluation

    def consensus(self) -> State:
        """The mean of all agents' models. A collective: every process must call it."""
        return mean_state(self._states(), self._mean_over_processes)

    def consensus_distance(self) -> Tensor:
        """The root mean square over all agents of |x^j - mean|, float64. A collective."""
        mean = self.consensus()
        squares = [squared_distance(state, mean) for state in self._states()]
        return self._mean_over_processes(torch.stack(squares).mean()).sqrt()

    def diagnostics(self) -> dict[str, Tensor]:
        """What the agents of this process report about their last step, averaged, and the norm of its direction."""
        reports = [self._report(agent) for agent in self._agents_here()]
        names = reports[0] if reports else {}
        return {name: torch.stack([report[name].double() for report in reports]).mean() for name in names}

    def _report(self, agent: Agent) -> dict[str, Tensor]:
        count = torch.tensor(self._finite[agent.rank].count, device=agent.grad.device)
        return {"gradient_norm": agent.grad.norm(), "non_finite_gradients": count, **agent.diagnostics}

    def on_validation_end(self) -> None:
        """Drop the average."""
        self._consensus = None
        super().on_validation_end()

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Validate with the consensus; outside of this call the module holds its own weights.

        It is averaged at the first batch, when callbacks may have put other weights in place, such as moving averages.
        """
        if not self._agents_differ or self.eval_model == "own":
            return super().validation_step(*args, **kwargs)
        if self._consensus is None:
            self._consensus = self.consensus()
        with ModuleState(self._module).activated(self._consensus):
            return super().validation_step(*args, **kwargs)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The consensus while fitting. A collective, except when an exception stopped this process alone."""
        if not self._agents_differ or self._alone:
            return super().lightning_module_state_dict()
        with ModuleState(self._module).activated(self.consensus()):
            return super().lightning_module_state_dict()


def _refuse_module(module: LightningModule) -> None:
    if not module.automatic_optimization:
        raise ValueError(
            f"{type(module).__name__} uses manual optimization (automatic_optimization=False), so its gradient cannot "
            "be evaluated at a neighbor's model. Return the loss from training_step and let Lightning optimize."
        )
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise ValueError(
            f"{type(module).__name__}.training_step(dataloader_iter) draws its batches itself, so it cannot be run "
            "again with a neighbor's model. Use training_step(batch, batch_idx)."
        )
