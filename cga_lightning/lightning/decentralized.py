"""One agent per process: the Lightning strategy of decentralized training."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from pytorch_lightning.strategies import DDPStrategy
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from cga_lightning.core.algorithm import Algorithm
from cga_lightning.core.communication import (
    CommunicationError,
    GlooWire,
    GroupedWire,
    ProcessGroupCommunicator,
    Wire,
    leave_group,
)
from cga_lightning.lightning import internals, starting
from cga_lightning.lightning.agent_files import Resume
from cga_lightning.lightning.agent_strategy import AgentStrategy, EvalModel
from cga_lightning.lightning.agreement import check_same_model, tell_differences, trainer_settings
from cga_lightning.lightning.launching import PromptLauncher, end
from cga_lightning.lightning.loaders import LoadersOfPeers, Uneven, tell_unsplit
from cga_lightning.lightning.logged_means import LoggedMeans
from cga_lightning.lightning.peers import ProcessGroup, from_agent_0
from cga_lightning.lightning.refusals import refuse_interactive, refuse_sharded, refuse_uninitialized
from cga_lightning.passes.module_state import ModuleState, overwrite
from cga_lightning.passes.parameters import StepOnce
from cga_lightning.passes.random_state import RandomState, RandomStreams, seed_all
from cga_lightning.topology import Topology

if TYPE_CHECKING:
    from lightning_fabric.plugins import ClusterEnvironment
    from pytorch_lightning import LightningModule, Trainer
    from pytorch_lightning.accelerators import Accelerator
    from pytorch_lightning.plugins import CheckpointIO, Precision

START_TIMEOUT = timedelta(seconds=300)
StartMethod = Literal["popen", "spawn", "fork", "forkserver"]


class DecentralizedStrategy(AgentStrategy, DDPStrategy):
    """Every process of the Trainer is an agent with its own data and its own model.

    Models are exchanged with the neighbors only; there is no DistributedDataParallel and no sampler is injected.

    Args:
        algorithm: an `Algorithm`, or its name: "cga", "compcga", "dpsgd", "sgp", "swarmsgd", ...
        topology: a `Topology`, or its name: "ring", "complete", "bipartite", "torus", ...
        timeout: how long an agent waits for a message or a collective before the run ends with an error.
        uneven: when the agents' train loaders differ in length: "cycle" repeats the shorter ones, "min" cuts the
            longer ones, "error" refuses.
        eval_model: validate with the "consensus" (mean) of all models, with each agent's "own", or with that after one
            round of gossip ("mixed"); what is logged per epoch is the mean over agents. Checkpoints have the consensus.
        settle: how many rounds of gossip agents make before they are validated on their own, or handed out by
            `agent_state_dicts`; training and checkpoints stay as they are. The mean is reached after as many as the
            mixing matrix has distinct eigenvalues besides 1: 5 on a ring of 10, 3 on a bipartite graph of any size.
        resume: on fit(ckpt_path=...), every agent goes on from its own part of the checkpoint ("agents"), or all
            start from the model in it ("consensus"), also if their number is another.
        start_method: how the Trainer starts the processes, as in `DDPStrategy`: "popen" runs the script again,
            "spawn", "fork" and "forkserver" use multiprocessing. Forked agents compute with one thread each.
        process_group_backend: "gloo" or "nccl"; chosen by the device if None.
        accelerator, parallel_devices, cluster_environment, checkpoint_io, precision_plugin: as in `DDPStrategy`.

    Raises:
        ValueError: in `Trainer(...)`, when the topology does not fit the number of devices, or the algorithm.
    """

    failed_elsewhere = False  # whether the processes that this one has started have failed

    def __init__(
        self,
        algorithm: Algorithm | str = "cga",
        topology: Topology | str = "ring",
        *,
        timeout: timedelta = timedelta(seconds=300),
        uneven: Uneven = "cycle",
        eval_model: EvalModel = "consensus",
        settle: int = 0,
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
        peers = ProcessGroup(timeout, self._interrupted, self._steps_made)
        super().__init__(
            algorithm,
            topology,
            uneven=uneven,
            eval_model=eval_model,
            settle=settle,
            resume=resume,
            peers=peers,
            loaders=LoadersOfPeers(peers, uneven),
            timeout=max(timeout, START_TIMEOUT),  # the others may still be importing; see setup_distributed
            start_method=start_method,
            process_group_backend=process_group_backend,
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            checkpoint_io=checkpoint_io,
            precision_plugin=precision_plugin,
        )
        self._means = LoggedMeans(peers)
        self._own_peers = peers
        self._fits = 0
        self.timeout = timeout
        self.start_method = start_method

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
        if self.start_method != "popen":
            internals.use_launcher(self, PromptLauncher(self, start_method=self.start_method))
        refuse_interactive(self.launcher)

    def connect(self, model: LightningModule) -> None:
        """Tell the others of SIGTERM along the edges, and not amid whatever this process does."""
        super().connect(model)
        internals.await_sigterm(model.trainer, self._note_sigterm)

    def _note_sigterm(self) -> None:
        self._transitions.terminate.received += 1

    def setup_environment(self) -> None:
        """A forked process has none of its parent's threads, and waits for ever if it takes up their pool."""
        if self.start_method == "fork":
            torch.set_num_threads(1)
        super().setup_environment()

    def setup_distributed(self) -> None:
        """Wait longer for the others to start than for an answer later."""
        if not dist.is_initialized():
            self._connect()
        super().setup_distributed()
        atexit.register(leave_group)
        public = getattr(dist, "set_timeout", None)  # since torch 2.15
        (public or dist.distributed_c10d._set_pg_timeout)(self.timeout)

    def _connect(self) -> None:
        """As Lightning does, but apart from other runs and from earlier attempts of this one."""
        self.set_world_ranks()
        environment, device = self.cluster_environment, self.root_device
        assert environment is not None
        os.environ |= {"MASTER_ADDR": environment.main_address, "MASTER_PORT": str(environment.main_port)}
        if self.num_nodes > 1:
            starting.choose_interface(environment.main_address)
        backend = self.process_group_backend or dist.get_default_backend_for_device(device)
        options = {} if device.type == "cpu" else {"device_id": device}
        starting.connect(backend, self.global_rank, self.agents, max(self.timeout, START_TIMEOUT), **options)

    def setup(self, trainer: Trainer) -> None:
        """Move the module to its device and let all agents start from the same point; never wrap it."""
        if self.accelerator is not None:
            self.accelerator.setup(trainer)
        module = self.module
        refuse_sharded(module)
        refuse_uninitialized(module)
        self.model = self.precision_plugin.convert_module(module)
        self.model_to_device()
        fitting = trainer.state.fn == "fit"
        settings = self._settings() + (trainer_settings(trainer) if fitting else [])
        check_same_model(module, settings, self._peers)
        state = ModuleState(module).capture()
        overwrite(state, from_agent_0(state))
        if fitting:
            seed_all(torch.initial_seed() + self.global_rank)  # else all agents draw the same shuffles and masks
            self.setup_optimizers(trainer)
            streams = RandomStreams([RandomState.capture()])
            self._training.start(ProcessGroupCommunicator(self._next_wire()), streams)
            self._settling.start(ProcessGroupCommunicator(self._next_wire()))
            self._transitions.begin(self._peers.notices(self.topology))
        self.setup_precision_plugin()

    def _next_wire(self) -> Wire:
        """One for each fit: what an earlier one has waited for in vain is no message of this one."""
        self._fits += 1
        kind = GlooWire if dist.get_backend() == "gloo" else GroupedWire
        return kind(self.global_rank, self.timeout, number=1 + self._fits)

    def on_train_start(self) -> None:
        """What agents need not agree on, but may not know of each other."""
        super().on_train_start()
        rates = [group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups if "lr" in group]
        sizes = [
            getattr(loader, "batch_size", None) for loader in tree_leaves(internals.train_loaders(self.module.trainer))
        ]
        tell_differences({"learning rate": [float(rate) for rate in rates], "batch size": sizes}, self._peers)

    # --- one step

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The own pass, on the own model; while it runs the first messages travel."""
        if not self._training.amid_step:
            self._consensus.forget()
            self._transitions.begin_step(self.module.trainer)
        (resident,) = residents = self._training.begin_micro_batch()
        residents.begin_pass(resident, *args)
        return self._cross.own_pass(*args, **kwargs)

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """Exchange once the own gradient is there, then step."""

        def completed() -> Any:
            result = closure()
            (resident,) = residents = self._training.residents
            residents.take_gradients(resident)
            self._exchange()
            residents.give_gradients(resident)
            return result

        once = StepOnce(completed)
        output = super().optimizer_step(optimizer, once, model, **kwargs)
        once.check()
        self._training.end_step()
        return output

    def _exchange(self) -> None:
        try:
            self._transitions.compare(self.module.trainer)
            self._training.exchange()
        except CommunicationError:
            self._transitions.explain()
            raise

    # --- evaluation

    def _let_settle(self) -> None:
        if self._settling.active:
            (state,) = self._settling.settled(self._training.states())
            self._consensus.enter_with(self.module, state)

    def on_validation_start(self) -> None:
        """Log means over agents: neither their own data nor their own models may lead them apart."""
        super().on_validation_start()
        self._means.begin(self.module.trainer)

    def on_validation_end(self) -> None:
        """Log own values again, and warn if agents disagree in spite of that."""
        self._means.end()
        self._compare_monitored()
        super().on_validation_end()

    def on_test_start(self) -> None:
        """Log means over agents."""
        super().on_test_start()
        self._means.begin(self.module.trainer)

    def on_test_end(self) -> None:
        """Log own values again."""
        self._means.end()
        super().on_test_end()

    def on_predict_start(self) -> None:
        """Tell that agents do not share out what is to be predicted."""
        super().on_predict_start()
        if self.is_global_zero:
            tell_unsplit(self.module.trainer.predict_dataloaders, self.agents)

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
        communicator = self._training.communicator
        if isinstance(communicator, ProcessGroupCommunicator):
            self._own_peers.close()
            communicator.close()

    def teardown(self) -> None:
        """After an exception too: the module has its own tensors again."""
        self._means.end()
        self._consensus.drop()
        self._settling.drop()
        if self.agents_differ:
            self._training.residents.restore(*self._training.states())
        super().teardown()

    def _interrupted(self) -> bool:
        try:
            return self.module.trainer.state.status == "interrupted"
        except RuntimeError:  # there is no Trainer in the main process of fork and spawn
            return True
