"""One agent per process: the Lightning strategy of decentralized training."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from cga_lightning.agent import Agent
from cga_lightning.agent_strategy import EvalModel
from cga_lightning.agreement import AgreeingProcesses
from cga_lightning.algorithms import Algorithm
from cga_lightning.checkpoint import Resume, restore_algorithm
from cga_lightning.communication import CommunicationError, ProcessGroupCommunicator
from cga_lightning.flat import FlatLayout
from cga_lightning.launching import PromptLauncher, end
from cga_lightning.loaders import Uneven
from cga_lightning.module_state import ModuleState, State, overwrite
from cga_lightning.sandbox import seed_all
from cga_lightning.stepping import StepOnce, rescale, same_objects, set_gradients, to_apply, trainable
from cga_lightning.topology import Topology
from cga_lightning.window import Window

if TYPE_CHECKING:
    from lightning_fabric.plugins import ClusterEnvironment
    from pytorch_lightning import Trainer
    from pytorch_lightning.accelerators import Accelerator
    from pytorch_lightning.plugins import CheckpointIO, Precision
    from pytorch_lightning.strategies import DDPStrategy

    class _Base(AgreeingProcesses, DDPStrategy): ...
else:
    _Base = AgreeingProcesses

START_TIMEOUT = timedelta(seconds=300)
StartMethod = Literal["popen", "spawn", "fork", "forkserver"]


class Decentralized(_Base):
    """Every process of the Trainer is an agent with its own data and its own model.

    Models are exchanged with the neighbors only; there is no DistributedDataParallel and no sampler is injected.

    Args:
        algorithm: an `Algorithm`, or its name: "cga", "compcga", "dpsgd", "sgp", "swarmsgd", ...
        topology: a `Topology`, or its name: "ring", "complete", "bipartite", "torus", ...
        timeout: how long an agent waits for a message or a collective before the run ends with an error.
        uneven: when the agents' train loaders differ in length: "cycle" repeats the shorter ones, "min" cuts the
            longer ones, "error" refuses.
        eval_model: validate and save checkpoints with the "consensus" (mean) of all models, or validate with each
            agent's "own". Either way what is logged per epoch is the mean over agents.
        resume: on fit(ckpt_path=...), every agent goes on from its own part of the checkpoint ("agents"), or all
            start from the model in it ("consensus"), also if their number is another.
        start_method: how the Trainer starts the processes, as in `DDPStrategy`: "popen" runs the script again,
            "spawn", "fork" and "forkserver" use multiprocessing. Forked agents compute with one thread each.
        process_group_backend: "gloo" or "nccl"; chosen by the device if None.
        accelerator, parallel_devices, cluster_environment, checkpoint_io, precision_plugin: as in `DDPStrategy`.

    Raises:
        ValueError: in `Trainer(...)`, when the topology does not fit the number of devices, or the algorithm.
    """

    multiprocessing_launcher: ClassVar[type[PromptLauncher]]
    failed_elsewhere = False  # whether the processes that this one has started have failed

    def __init__(
        self,
        algorithm: Algorithm | str = "cga",
        topology: Topology | str = "ring",
        *,
        timeout: timedelta = timedelta(seconds=300),
        uneven: Uneven = "cycle",
        eval_model: EvalModel = "consensus",
        resume: Resume = "agents",
        start_method: StartMethod = "popen",
        process_group_backend: str | None = None,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
    ) -> None:
        if not isinstance(timeout, timedelta):
            raise TypeError(f"timeout must be a datetime.timedelta such as timedelta(seconds=300), got {timeout!r}.")
        super().__init__(
            algorithm,
            topology,
            uneven,
            eval_model,
            resume,
            timeout=timeout,
            start_method=start_method,
            process_group_backend=process_group_backend,
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            checkpoint_io=checkpoint_io,
            precision_plugin=precision_plugin,
        )
        self._agent: Agent | None = None
        self._parameters: list[torch.nn.Parameter] = []
        self._window = Window()

    @property
    def agents(self) -> int:
        """The number N of agents: one per process, on all nodes."""
        return self.num_nodes * self.num_processes

    @property
    def local_agents(self) -> Sequence[int]:
        """The rank of this process."""
        return [self.global_rank]

    # --- start

    def _configure_launcher(self) -> None:
        self._bind(self.agents)  # the first place that knows their number: in Trainer(...)
        super()._configure_launcher()
        if self._start_method != "popen":
            self._launcher = self.multiprocessing_launcher(self, start_method=self._start_method)

    def setup_environment(self) -> None:
        """A forked process has none of its parent's threads, and waits for ever if it takes up their pool."""
        if self._start_method == "fork":
            torch.set_num_threads(1)
        super().setup_environment()

    def setup_distributed(self) -> None:
        """Wait longer for the others to start than for an answer later: they may still be importing."""
        timeout = self._timeout or timedelta.max
        self._timeout = max(timeout, START_TIMEOUT)
        try:
            super().setup_distributed()
        finally:
            self._timeout = timeout
        public = getattr(dist, "set_timeout", None)  # since torch 2.15
        (public or dist.distributed_c10d._set_pg_timeout)(timeout)

    def setup(self, trainer: Trainer) -> None:
        """Move the module to its device and let all agents start from the same point; never wrap it."""
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        module = self._module
        self._refuse_sharded()
        self.model = self.precision_plugin.convert_module(module)
        self.model_to_device()
        self._check_same_model()
        state = ModuleState(module).capture()
        overwrite(state, [_from_agent_0(tensor) for tensor in state])
        if trainer.state.fn == "fit":
            seed_all(torch.initial_seed() + self.global_rank)  # else all agents draw the same shuffles and masks
            self.setup_optimizers(trainer)
            self._communicator = ProcessGroupCommunicator(self.global_rank, self.timeout)
        self.setup_precision_plugin()

    # --- one step

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Send the model off before the first micro-batch of a step; remember what the step has seen."""
        self._check_window(self._window)
        if not len(self._window):
            self._begin_step()
        self._window.append(*args)
        return super().training_step(*args, **kwargs)

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """Exchange and project once the own gradient is there, then step."""

        def completed() -> Any:
            result = closure()
            self._finish_step()
            return result

        once = StepOnce(completed)
        output = super().optimizer_step(optimizer, once, model, **kwargs)
        once.check()
        self._after_step()
        self._window.clear()
        return output

    def _begin_step(self) -> None:
        parameters = trainable(self._module)
        if self._agent is None or not same_objects(parameters, self._parameters):
            self._create_agent(parameters)
        agent = self._agent
        assert agent is not None and self._communicator is not None
        self._layout.write(parameters, out=agent.params)
        agent.grad = None
        self._communicator.open_step(agent.step, self.algorithm.exchanges)
        self._communicator.begin([self.algorithm.step(agent)])

    def _create_agent(self, parameters: list[torch.nn.Parameter]) -> None:
        self._check_same_model()
        self._parameters = parameters
        self._layout = FlatLayout(parameters)
        self._grad = self._layout.zeros()
        step = 0 if self._agent is None else self._agent.step
        self._agent = Agent(
            self.global_rank,
            self.topology,
            self._layout.zeros(),
            lambda at: self._gradient(self._window, self._parameters, self._layout, at),
            self._layout,
        )
        self._agent.step = step
        self._agents_differ = True

    def _finish_step(self) -> None:
        agent = self._agent
        assert agent is not None and self._communicator is not None
        own = [parameter.grad for parameter in self._parameters]
        self._take_gradient(agent, self._layout.write(own, out=self._grad), self._scaler)
        self._communicator.finish()
        with torch.no_grad():
            self._layout.read(agent.params, self._parameters)
        direction = rescale(agent.grad, self._scaler)
        set_gradients(self._parameters, to_apply(own, self._layout.views(direction)))

    def _after_step(self) -> None:
        agent = self._agent
        assert agent is not None and self._communicator is not None
        if type(self.algorithm).after_step is not Algorithm.after_step:
            self._layout.write(self._parameters, out=agent.params)
            self._communicator.run([self.algorithm.after_step(agent)])
            with torch.no_grad():
                self._layout.read(agent.params, self._parameters)
        agent.step += 1

    # --- the agent of this process

    def _each_agent(self) -> Iterator[Agent]:
        yield from self._agents_here()

    def _restore_agents(self, shards: Mapping[int, Mapping[str, Any]]) -> None:
        shard = shards[self.global_rank]
        self._create_agent(trainable(self._module))
        assert self._agent is not None
        restore_algorithm(self._agent, shard)
        self._restore_live(shard)

    def _states(self) -> list[State]:
        return [ModuleState(self._module).capture()]

    def _agents_here(self) -> list[Agent]:
        return [] if self._agent is None else [self._agent]

    # --- end

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """As usual, but nothing in the main process of fork and spawn when agents have failed: it has not trained."""
        if not self.failed_elsewhere:
            super().save_checkpoint(checkpoint, filepath, storage_options)

    def on_exception(self, exception: BaseException) -> None:
        """When the run cannot go on, let the neighbors know at once, and leave no process behind."""
        super().on_exception(exception)
        if isinstance(exception, CommunicationError):
            self.leave()
            end(getattr(self.launcher, "procs", []))
        else:
            atexit.register(self.leave)  # before the interpreter's end, which takes seconds

    def leave(self) -> None:
        """Close the connections to all other agents."""
        if isinstance(self._communicator, ProcessGroupCommunicator):
            self._communicator.close()

    def on_train_end(self) -> None:
        """Every process ends with the consensus, so the main process holds it under every launcher."""
        super().on_train_end()
        state = ModuleState(self._module)
        overwrite(state.capture(), self.consensus())
        self._agents_differ = False
        self._agent = None


def _from_agent_0(tensor: Tensor) -> Tensor:
    received = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.broadcast(received.view(-1).view(torch.uint8), src=0)  # as bytes: gloo and NCCL know few dtypes
    return received
