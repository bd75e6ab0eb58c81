"""N agents in one process: the same algorithms and the same module, without processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from cga_lightning.agent import Agent
from cga_lightning.agent_strategy import AgentStrategy, EvalModel
from cga_lightning.algorithms import Algorithm
from cga_lightning.checkpoint import Resume, restore_algorithm
from cga_lightning.communication import LocalCommunicator
from cga_lightning.flat import FlatLayout
from cga_lightning.loaders import AgreedLoader, LoaderGroup, Uneven
from cga_lightning.log_mean import log_mean, mean_output
from cga_lightning.module_state import ModuleState, State
from cga_lightning.residents import Resident, Turns, random_states
from cga_lightning.stepping import StepOnce, rescale, same_objects, set_gradients, to_apply, trainable
from cga_lightning.topology import Topology

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer
    from pytorch_lightning.accelerators import Accelerator
    from pytorch_lightning.plugins import CheckpointIO, Precision
    from pytorch_lightning.strategies import SingleDeviceStrategy

    class _Base(AgentStrategy, SingleDeviceStrategy): ...
else:
    _Base = AgentStrategy


class Simulated(_Base):
    """All agents of a run in one process and on one device, step by step together.

    Needs one train loader per agent, `fit(train_dataloaders=[...])` with a list of N, or a `PartitionedDataModule`. A
    training batch is then the list of the agents' batches. Each agent has its own parameters, buffers, optimizer state
    and random streams; other attributes of the module are shared. Hooks of the backward pass and of the optimizer run
    once per agent, hooks of the batch once; between steps the module holds the weights of agent 0. What the agents log
    under one name is logged once, as their mean.

    Args:
        agents: the number N of agents.
        algorithm: an `Algorithm`, or its name: "cga", "compcga", "dpsgd", "sgp", "swarmsgd", ...
        topology: a `Topology`, or its name: "ring", "complete", "bipartite", "torus", ...
        uneven: when the agents' train loaders differ in length: "cycle" repeats the shorter ones, "min" cuts the
            longer ones, "error" refuses.
        eval_model: validate and save checkpoints with the "consensus" (mean) of all models, or validate with each
            agent's "own" (their logged values are averaged).
        resume: on fit(ckpt_path=...), every agent goes on from its own part of the checkpoint ("agents"), or all
            start from the model in it ("consensus"), also if their number is another.
        accelerator, checkpoint_io, precision_plugin: as in `SingleDeviceStrategy`.

    Raises:
        ValueError: when the topology does not fit the number of agents, or the algorithm.
    """

    def __init__(
        self,
        agents: int,
        algorithm: Algorithm | str = "cga",
        topology: Topology | str = "ring",
        *,
        uneven: Uneven = "cycle",
        eval_model: EvalModel = "consensus",
        resume: Resume = "agents",
        accelerator: Accelerator | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
    ) -> None:
        super().__init__(
            algorithm,
            topology,
            uneven,
            eval_model,
            resume,
            accelerator=accelerator,
            checkpoint_io=checkpoint_io,
            precision_plugin=precision_plugin,
        )
        if isinstance(agents, bool) or not isinstance(agents, int):
            raise TypeError(f"agents must be the number of agents, an int, got {agents!r}.")
        self._bind(agents)
        self.parallel_devices: list[torch.device] | None = None  # set by the Trainer
        self._agents = agents
        self._residents: list[Resident] = []
        self._loaders = LoaderGroup()

    @property
    def agents(self) -> int:
        """The number N of agents."""
        return self._agents

    @property
    def local_agents(self) -> Sequence[int]:
        """All of them."""
        return range(self._agents)

    def agent_state_dicts(self) -> list[dict[str, Any]]:
        """Every agent's own state_dict, copied; during fit and after it, until the next one.

        Raises:
            RuntimeError: before the first training step.
        """
        if not self._residents:
            raise RuntimeError("There are no agents before the first training step; call agent_state_dicts() later.")
        return [self._state_dict(state) for state in self._states()]

    def _state_dict(self, state: State) -> dict[str, Any]:
        with ModuleState(self._module).activated(state):
            return {name: value.clone() for name, value in self._module.state_dict().items()}

    # --- start

    def _configure_launcher(self) -> None:
        """Take the device of the Trainer, which must be one."""
        devices = self.parallel_devices or [torch.device("cpu")]
        if len(devices) > 1:
            raise ValueError(
                f"SimulatedStrategy runs all agents on one device, got Trainer(devices={len(devices)}). Set devices=1, "
                "or use DecentralizedStrategy for one agent per process."
            )
        self._root_device = torch.device(devices[0])
        super()._configure_launcher()

    def setup(self, trainer: Trainer) -> None:
        """Seed every agent; they are created at the first step, when a checkpoint has been loaded."""
        super().setup(trainer)
        if trainer.state.fn == "fit":
            _refuse_averages(trainer)
            self._residents = []
            self._loaders = LoaderGroup()
            self._communicator = LocalCommunicator()
            self._turns = Turns(self._module, self.optimizers[0], self.precision_plugin)
            self._random = random_states(self.agents)
            _transfer_one_by_one(self._module)

    def on_train_start(self) -> None:
        """Check that there is a loader for every agent."""
        super().on_train_start()
        loader = self._trainer.fit_loop._combined_loader
        loaders = None if loader is None else loader.iterables
        if isinstance(loaders, AgreedLoader):
            loaders = loaders.wrapped
        if not isinstance(loaders, list | tuple) or len(loaders) != self.agents:
            found = f"{len(loaders)}" if isinstance(loaders, list | tuple) else f"a {type(loaders).__name__}"
            raise ValueError(
                f"SimulatedStrategy(agents={self.agents}) needs a list of {self.agents} train loaders, one per agent, "
                f"got {found}. Pass fit(train_dataloaders=[...]) or a PartitionedDataModule."
            )

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """Transfer the agents' batches one by one, so that the user's hooks see one batch."""
        if not self._trainer.training:
            return super().batch_to_device(batch, device, dataloader_idx)
        transfer = super().batch_to_device
        return [transfer(part, device, dataloader_idx) for part in batch]

    def _agree_on_length(self, loader: Any) -> Any:
        if self._loaders.complete:
            self._loaders = LoaderGroup()
        self._loaders.append(loader)
        return AgreedLoader(loader, partial(self._loaders.agreed_length, self.uneven))

    # --- one step

    def training_step(self, batches: Any, *args: Any) -> Any:
        """Forward and backward of every agent on its own batch."""
        if not self._residents:
            self._create_residents()
        self._check_window(self._residents[0].window)
        if not len(self._residents[0].window):
            self._begin_step()
        with log_mean(self._module) as logs:
            outputs = []
            for resident, batch in zip(self._residents, batches, strict=True):
                logs.next_batch(batch)
                outputs.append(self._own_pass(resident, batch, *args))
        self._turns.give(self._residents[0])
        return mean_output(outputs)

    def _own_pass(self, resident: Resident, *args: Any) -> Any:
        self._turns.give(resident)
        set_gradients(self._parameters, resident.grads)
        resident.window.append(*args)
        output = super().training_step(*args)
        super().backward(self._loss(output), self.optimizers[0])
        self._keep_gradients(resident)
        return output

    def _keep_gradients(self, resident: Resident) -> None:
        """In the agent's flat gradient, so that the memory they came in is free, and warm, for the next pass."""
        grads = [parameter.grad for parameter in self._parameters]
        kept = self._layout.views(self._layout.write(grads, out=resident.flat_grad))
        resident.grads = [None if grad is None else view for grad, view in zip(grads, kept, strict=True)]
        set_gradients(self._parameters, [None] * len(grads))

    def backward(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Done already, for each agent in its turn; this is the mean of their losses."""
        return closure_loss

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """Exchange and project, then let every agent step."""
        result = closure()
        self._exchange()
        with log_mean(self._module):
            for resident in self._turns.optimize(self._residents):
                set_gradients(self._parameters, resident.grads)
                once = StepOnce(lambda: result)
                super().optimizer_step(optimizer, once, model, **kwargs)
                once.check()
        if type(self.algorithm).after_step is not Algorithm.after_step:
            self._collect_params()
            self._run([self.algorithm.after_step(resident.agent) for resident in self._residents])
        for resident in self._residents:
            resident.agent.step += 1
            resident.window.clear()
        self._turns.give(self._residents[0])
        return result

    def _create_residents(self) -> None:
        self._parameters: list[torch.nn.Parameter] = []
        self._agents_differ = True
        home = self._turns.home
        self._residents = [
            Resident([tensor.clone() for tensor in home], self.optimizers[0], self._scaler, random)
            for random in self._random
        ]

    def _begin_step(self) -> None:
        parameters = trainable(self._module)
        if not same_objects(parameters, self._parameters):
            self._create_agents(parameters)
        self._collect_params()
        for resident in self._residents:
            resident.grads = [None] * len(parameters)

    def _create_agents(self, parameters: list[torch.nn.Parameter]) -> None:
        self._turns.end()
        self._parameters = parameters
        self._layout = FlatLayout(parameters)
        places = {id(parameter): i for i, parameter in enumerate(self._turns.module_state.parameters)}
        self._places = [places[id(parameter)] for parameter in parameters]
        for rank, resident in enumerate(self._residents):
            params = self._layout.write([resident.state[i] for i in self._places], out=self._layout.zeros())
            step = resident.agent.step if hasattr(resident, "agent") else 0
            resident.agent = Agent(rank, self.topology, params, self._gradient_of(resident), self._layout)
            resident.agent.step = step
            resident.flat_grad = self._layout.zeros()
            self._use_params(resident)

    def _gradient_of(self, resident: Resident) -> Callable[[Tensor], Tensor]:
        def gradient(at: Tensor) -> Tensor:
            self._turns.give(resident)
            return self._gradient(resident.window, self._parameters, self._layout, at)

        return gradient

    def _exchange(self) -> None:
        for resident in self._residents:
            self._take_gradient(resident.agent, resident.flat_grad, resident.scaler)
        assert self._communicator is not None
        self._communicator.open_step(self._residents[0].agent.step, self.algorithm.exchanges)
        self._run([self.algorithm.step(resident.agent) for resident in self._residents])
        for resident in self._residents:
            direction = rescale(resident.agent.grad, resident.scaler)
            resident.grads = to_apply(resident.grads, self._layout.views(direction))

    def _run(self, steps: list[Any]) -> None:
        assert self._communicator is not None
        self._communicator.run(steps)
        self._turns.end()
        for resident in self._residents:
            self._use_params(resident)

    def _collect_params(self) -> None:
        """Into the flat vectors, where code has given a parameter other memory than the view into them."""
        self._turns.refresh()
        for resident in self._residents:
            for place, view in zip(self._places, self._layout.views(resident.agent.params), strict=True):
                if resident.state[place].data_ptr() != view.data_ptr():
                    view.copy_(resident.state[place])

    def _use_params(self, resident: Resident) -> None:
        """Let the module's parameters of this agent be views into its flat vector, which mixing replaces."""
        for place, view in zip(self._places, self._layout.views(resident.agent.params), strict=True):
            resident.state[place] = view

    # --- checkpoints

    def _each_agent(self) -> Iterator[Agent]:
        for resident in self._turns.optimize(self._residents):
            yield resident.agent
        self._turns.give(self._residents[0])

    def _restore_agents(self, shards: Mapping[int, Mapping[str, Any]]) -> None:
        self._create_residents()
        for rank, _ in enumerate(self._turns.optimize(self._residents)):
            self._restore_live(shards[rank])
        self._create_agents(trainable(self._module))
        for resident in self._residents:
            restore_algorithm(resident.agent, shards[resident.agent.rank])
        self._turns.give(self._residents[0])

    # --- end

    def _states(self) -> list[State]:
        if not self._residents:
            return [ModuleState(self._module).capture()]
        if self._agents_differ:
            self._turns.refresh()
        return [resident.state for resident in self._residents]

    def _agents_here(self) -> list[Agent]:
        return [resident.agent for resident in self._residents]

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Validate with the consensus, or with every agent's own model in turn."""
        if self.eval_model == "consensus" or not (self._agents_differ and self._residents):
            return super().validation_step(*args, **kwargs)
        with log_mean(self._module) as logs:
            logs.next_batch(args)
            return [self._validate(state, *args, **kwargs) for state in self._states()]

    def _validate(self, state: State, *args: Any, **kwargs: Any) -> Any:
        with ModuleState(self._module).activated(state):
            return super().validation_step(*args, **kwargs)

    def on_train_end(self) -> None:
        """The module ends with the consensus; the agents' own models stay with `agent_state_dicts()`."""
        super().on_train_end()
        self._settle()

    def teardown(self) -> None:
        """After an exception too."""
        self._settle()
        vars(self._module).pop("_on_before_batch_transfer", None)
        super().teardown()

    def _settle(self) -> None:
        if self._agents_differ:
            self._turns.settle(self.consensus())
            self._agents_differ = False


def _refuse_averages(trainer: Trainer) -> None:
    """Callbacks that average the module's weights would see those of agent 0 only, and give them to all."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if {"StochasticWeightAveraging", "WeightAveraging"} & {kind.__name__ for kind in type(callback).__mro__}:
            raise ValueError(
                f"{type(callback).__name__} keeps one average of the weights, but a simulation has one module for "
                "several agents. Remove it, or use DecentralizedStrategy."
            )


def _transfer_one_by_one(module: LightningModule) -> None:
    """Let the user's on_before_batch_transfer see one agent's batch at a time."""
    hook = type(module)._on_before_batch_transfer

    def each(batch: Any, dataloader_idx: int = 0) -> Any:
        if not module.trainer.training:
            return hook(module, batch, dataloader_idx)
        return [hook(module, part, dataloader_idx) for part in batch]

    object.__setattr__(module, "_on_before_batch_transfer", each)
