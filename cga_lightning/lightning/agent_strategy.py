"""What agents in processes and in a simulation have in common: the hooks of a strategy, handed to what it owns."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from pytorch_lightning.strategies import Strategy
from torch import Tensor
from torch.optim import Optimizer

from cga_lightning.algorithms import ALGORITHMS
from cga_lightning.core.algorithm import Algorithm
from cga_lightning.core.layout import FlatLayout
from cga_lightning.lightning import internals, refusals, trees
from cga_lightning.lightning.advice import advise
from cga_lightning.lightning.agent_files import AgentFiles, CheckpointError, Resume, of_equal_agents, remove_shards
from cga_lightning.lightning.agreement import DifferenceWarning, check_same_model, monitored
from cga_lightning.lightning.consensus import Consensus
from cga_lightning.lightning.cross_gradients import CrossGradients
from cga_lightning.lightning.loaders import LoadersOfPeers, LoadersOfSimulation, Uneven
from cga_lightning.lightning.peers import Peers
from cga_lightning.lightning.phases import Phases
from cga_lightning.lightning.requeue import RequeueSignal
from cga_lightning.lightning.settling import Settling
from cga_lightning.lightning.training import Training, as_numbers, mean_by_name
from cga_lightning.lightning.transitions import Next, Transitions
from cga_lightning.names import check_choice, resolved
from cga_lightning.passes.module_state import ModuleState, State
from cga_lightning.passes.parameters import trainable
from cga_lightning.passes.random_state import RandomState
from cga_lightning.topology import TOPOLOGIES, Topology

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

T = TypeVar("T")
EvalModel = Literal["consensus", "own", "mixed"]


class AgentStrategy(Strategy):
    """Trains the agents of this process, one or many.

    Args:
        algorithm: an `Algorithm`, or its name.
        topology: a `Topology`, bound to a number of agents or not, or its name.
        uneven: what happens when the agents' train loaders have different lengths, see `agreed_length`.
        eval_model: validate with the mean of all agents' models ("consensus"), with each agent's "own", or with that
            after one round of gossip ("mixed").
        settle: how many rounds of gossip agents make before they are validated on their own or handed out.
        resume: on fit(ckpt_path=...), every agent goes on from its own part of the checkpoint ("agents"), or all
            start from the model in it ("consensus").
        peers: the processes of the run.
        loaders: agree on the length of an epoch.
        base: arguments of the strategy of Lightning.
    """

    def __init__(
        self,
        algorithm: Algorithm | str,
        topology: Topology | str,
        *,
        uneven: Uneven,
        eval_model: EvalModel,
        settle: int,
        resume: Resume,
        peers: Peers,
        loaders: LoadersOfPeers | LoadersOfSimulation,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        check_choice("uneven", uneven, ("cycle", "min", "error"))
        check_choice("eval_model", eval_model, ("consensus", "own", "mixed"))
        check_choice("resume", resume, ("agents", "consensus"))
        self.algorithm: Algorithm = resolved("algorithm", ALGORITHMS, algorithm, Algorithm)
        self.topology: Topology = resolved("topology", TOPOLOGIES, topology, Topology)
        self.uneven = uneven
        self.eval_model = eval_model
        self.settle = settle
        self.resume = resume
        self._layer_sync: Any = None  # set by the Trainer
        self._peers = peers
        self._loaders = loaders
        self._cross = CrossGradients(self, self._plain_training_step)
        self._training = Training(self, self._cross, self._check_same_model)
        check = partial(self._check_same_model, "to average it")
        self._consensus = Consensus(peers, self._training.states, self._training.overwrite, check)
        check = partial(self._check_same_model, "to let them settle")
        self._settling = Settling(self, settle, eval_model == "mixed", self._steps_made, check)
        self._transitions = Transitions(peers, self._steps_made, self._is_amid_step)
        self._phases = Phases(self, self._consensus, self._transitions)
        self._files = AgentFiles(self, peers)
        self._differences = DifferenceWarning()
        self._requeue = RequeueSignal(self._transitions, peers)
        self._advised = False

    # --- who

    @property
    @abstractmethod
    def agents(self) -> int:
        """The number N of agents of the run."""

    @property
    @abstractmethod
    def local_agents(self) -> Sequence[int]:
        """The ranks of the agents of this process."""

    @property
    def is_first_of_node(self) -> bool:
        """Whether this process is the first one of a node that is not that of agent 0."""
        return not self.is_global_zero and getattr(self, "local_rank", 0) == 0

    @property
    def traffic(self) -> Counter[str]:
        """Payload bytes that the agents of this process have sent so far, by name of the exchange.

        So too what processes tell each other beside the algorithm: "notices" to neighbors, collectives by name.
        """
        return self._messages + self._peers.traffic

    @property
    def _messages(self) -> Counter[str]:
        """The part of it that a simulation has too."""
        return self._training.traffic + self._settling.traffic

    @property
    def module(self) -> LightningModule:
        """The user's module.

        Raises:
            RuntimeError: before a Trainer has started with one.
        """
        if self.lightning_module is None:
            raise RuntimeError("The strategy has no LightningModule before the Trainer has started with one.")
        return self.lightning_module

    def _is_amid_step(self) -> bool:
        return self._training.amid_step

    def _steps_made(self) -> int:
        return self._training.step

    # --- start

    def _bind(self, agents: int) -> None:
        self.topology = self.topology.bind(agents)
        self.algorithm.check(self.topology)
        self._settling.check()

    def _configure_launcher(self) -> None:
        """In Trainer(...), once it knows all of its arguments: the first moment to refuse one."""
        refusals.refuse_layer_sync(internals.layer_sync(self))
        trees.join(self, self.accelerator)  # it is that of the Trainer
        super()._configure_launcher()

    def connect(self, model: LightningModule) -> None:
        """Refuse modules that cannot work, and leave the users' samplers alone."""
        internals.leave_samplers(model.trainer)
        internals.await_requeue(model.trainer, None)
        if model.trainer.state.fn == "fit":
            refusals.refuse_module(model)
            self._phases.come_first(model.trainer)
            self._requeue.watch(model.trainer)
            self._files.forget()
        super().connect(model)

    def setup_optimizers(self, trainer: Trainer) -> None:
        """Refuse parameters that cannot be exchanged, and optimizers that do not go with the algorithm."""
        FlatLayout(trainable(self.module))
        super().setup_optimizers(trainer)
        refusals.refuse_optimizers(self.optimizers)
        if self.is_global_zero and not self._advised:
            advise(self.algorithm, self.optimizers, trainer)
            self._advised = True
        for optimizer in filter(lambda optimizer: isinstance(optimizer, Optimizer), self.optimizers):
            optimizer.register_step_pre_hook(self._cross.forbid_steps_in_passes)

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """As in Lightning, but not inside training_step."""
        self._cross.forbid_steps_in_passes()
        return super().optimizer_step(optimizer, closure, model, **kwargs)

    def _check_same_model(self, *why: str) -> None:
        check_same_model(self.module, self._settings(), self._peers, *why)

    def _settings(self) -> list[str]:
        """What all agents must agree on, for the reader of an error."""
        return [
            f"{name} {getattr(self, name)!r}" for name in ("algorithm", "topology", "uneven", "eval_model", "settle")
        ]

    # --- data

    def process_dataloader(self, dataloader: Any) -> Any:
        """Let every agent serve the same number of train batches per epoch."""
        dataloader = super().process_dataloader(dataloader)
        trainer = self.module.trainer
        stage = internals.new_loader_stage(trainer)
        if stage == "train":
            self._restore_agents()
            settled = trainer.max_steps != -1 or isinstance(trainer.limit_train_batches, int)
            return self._files.loaders.continued(self._loaders.agree(dataloader, settled))
        if stage is not None:
            self._loaders.check(dataloader, stage)
        return dataloader

    # --- one step

    def _plain_training_step(self, *args: Any, **kwargs: Any) -> Any:
        return super().training_step(*args, **kwargs)

    # --- collectives

    def all_gather(self, tensor: Tensor, group: Any | None = None, sync_grads: bool = False) -> Tensor:
        """As in Lightning, but not inside training_step."""
        self._cross.forbid_in_passes("all_gather")
        with self._peers.collective("all_gather"):
            return super().all_gather(tensor, group, sync_grads)  # type: ignore[safe-super]

    def barrier(self, name: str | None = None) -> None:
        """As in Lightning, but not inside training_step."""
        self._cross.forbid_in_passes("barrier")
        if not self._peers.left:
            if self.agents_differ and str(name).endswith("_dataloader()"):
                self._transitions.agree(Next.LOADERS, self.module.trainer)
            self._peers.gather(None, "barrier")

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        """As in Lightning, but not inside training_step."""
        self._cross.forbid_in_passes("broadcast")
        return obj if self._peers.left else self._peers.broadcast(obj, src)

    def reduce(self, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        """As in Lightning, but not in a pass with a neighbor's model."""
        self._cross.forbid_in_cross_passes("reduce")
        with self._peers.collective("reduce"):
            return super().reduce(tensor, *args, **kwargs)  # type: ignore[safe-super]

    # --- evaluation

    def consensus(self) -> State:
        """The mean of all agents' models. A collective: every process must call it."""
        return self._consensus.mean()

    def consensus_distance(self) -> Tensor:
        """The root mean square over all agents of |x^j - mean|, float64. A collective."""
        return self._consensus.distance()

    def agent_state_dicts(self) -> list[dict[str, Any]]:
        """The own state_dict of every agent of this process, copied; at any time during fit.

        After fit, until the next one, that of a simulated agent; in processes all agents then have the consensus. With
        `settle` or `eval_model="mixed"` after those rounds of gossip: a collective then, which every process must call.

        Raises:
            RuntimeError: before the first training step.
        """
        with self._consensus.put_aside():
            return [self._state_dict(state) for state in self._settled_states()]

    def _settled_states(self) -> Sequence[State]:
        states = self._training.residents.states()
        alone = self._peers.left or len(states) == 1 and not self.agents_differ  # nobody answers, or all are alike
        return states if alone else self._settling.settled(states)

    def _state_dict(self, state: State) -> dict[str, Any]:
        with ModuleState(self.module).activated(state):
            return {name: value.clone() for name, value in self.module.state_dict().items()}

    def of_every_agent(self, measure: Callable[[LightningModule], T]) -> list[T]:
        """What `measure` returns for the module with each agent's own model, of all agents of the run by rank.

        In evaluation mode, without gradients; the random streams are put back. A collective.
        """
        with self._consensus.put_aside():
            mine = [self._measured(measure, state) for state in self._training.states()]
        values = [value for values in self._peers.gather(mine, "measurement") for value in values]
        return values if len(values) == self.agents else values * self.agents  # they start from one model

    def _measured(self, measure: Callable[[LightningModule], T], state: State) -> T:
        module, streams = self.module, RandomState.capture()
        modes = {part: part.training for part in module.modules()}
        try:
            with ModuleState(module).activated(state), torch.no_grad():
                return measure(module.eval())
        finally:
            streams.restore()
            for part, training in modes.items():
                part.training = training

    def algorithm_states(self) -> list[dict[str, Any]]:
        """What the algorithm keeps from step to step of every agent of this process, not copied."""
        return [agent.state_dict() for agent in self._training.driver.agents]

    def network_traffic(self) -> Counter[str]:
        """Payload bytes that all agents of the run have sent each other so far, by name of the exchange.

        The same in processes and in a simulation: without what processes tell each other. A collective.
        """
        return sum(self._peers.gather(self._messages, "traffic"), Counter[str]())

    def diagnostics(self) -> dict[str, Tensor]:
        """What the agents of this process report about their last step, each value averaged over those that have it."""
        return mean_by_name(self._training.diagnostics())

    def network_diagnostics(self) -> dict[str, float]:
        """What all agents of the run report about their last step, averaged likewise, and the bytes sent per agent.

        A collective.
        """
        mine = as_numbers(self._training.diagnostics())
        gathered = self._peers.gather((mine, dict(self._messages)), "diagnostics")
        sent = sum((Counter(traffic) for _, traffic in gathered), Counter[str]())
        means = mean_by_name([report for reports, _ in gathered for report in reports])
        return {name: float(value) for name, value in means.items()} | {
            f"traffic/{name}": total / self.agents for name, total in sent.items()
        }

    @property
    def agents_differ(self) -> bool:
        """Whether agents have models of their own, as they do from their first step until the end of fit."""
        return self._training.agents_differ

    @property
    def validates_consensus(self) -> bool:
        """Whether a validation now puts the consensus in place of the agents' models."""
        return self.agents_differ and self.eval_model == "consensus"

    def begin_validation(self) -> None:
        """From now on what is validated is the consensus, or agents that have settled. A collective."""
        if self.validates_consensus:
            self._consensus.enter(self.module)
        elif self.agents_differ:
            self._let_settle()

    @abstractmethod
    def _let_settle(self) -> None:
        """From now on what is validated is the agents of this process after their rounds of gossip. A collective."""

    def on_validation_start(self) -> None:
        """The module holds what is validated already, see `Phases`, unless somebody has removed that callback."""
        self.begin_validation()
        super().on_validation_start()

    def on_validation_end(self) -> None:
        """The module holds the tensors of its agent again; what was written into buffers stays."""
        self._consensus.leave()
        super().on_validation_end()

    # --- checkpoints

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The consensus while fitting. A collective, but not when an exception stopped this process alone."""
        if not self.agents_differ or self._peers.left:
            return super().lightning_module_state_dict()
        with self._consensus.swapped_into(self.module):
            return super().lightning_module_state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """The consensus, and one shard per agent. A collective, except when an exception stopped this process alone."""
        if self._peers.left:
            return super().save_checkpoint(checkpoint, filepath, storage_options)
        self._compare_monitored()
        checkpoint = self._consensus.of_averages(checkpoint)
        if self._training.is_new:
            checkpoint = of_equal_agents(checkpoint)
        if not self.agents_differ or "optimizer_states" not in checkpoint:
            return super().save_checkpoint(checkpoint, filepath, storage_options)
        with self._consensus.put_aside():
            residents = self._training.residents.each()
            return self._files.save(checkpoint, filepath, self.agents, residents, storage_options=storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The consensus; to go on with training also the agents, which start from there at their first batches."""
        self._files.settle()
        path = self.broadcast(os.fspath(checkpoint_path))  # where "best" is another for every agent, that of agent 0
        contents = self._read(path, weights_only)
        if self._fitting:
            self._training.end_agents()  # of a tuner that goes back to where it started
        if self._fitting and self.resume == "agents":
            self._files.load(path, contents, self.agents, self.local_agents, weights_only=weights_only)
        return contents

    def _read(self, path: Any, weights_only: bool | None) -> dict[str, Any]:
        """What the file holds. A collective.

        Raises:
            CheckpointError: on every process, when one of them cannot read it.
        """
        try:
            contents, problem = super().load_checkpoint(path, weights_only), None
        except Exception as error:  # whatever unpickling a damaged file may raise
            contents, problem = {}, error
        problems = self._peers.gather(None if problem is None else f"{type(problem).__name__}: {problem}", "checkpoint")
        if len({*problems}) == 1 and problem is not None:  # alike everywhere: no question of disks
            raise problem
        for rank, found in enumerate(problems):
            if found is not None:
                raise CheckpointError(
                    f"{path} cannot be read by agent {rank} ({found}). Each node needs the file on its disk: copy it "
                    "from another node, or go on from an earlier one."
                ) from problem
        return contents

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """That of the optimizer; all else that agents go on from follows with the train data.

        Where the module has asked for these already, to know how many steps there will be, they are loaded again.
        """
        super().load_optimizer_state_dict(checkpoint)
        self._files.restore_with_data()
        internals.load_train_data_again(self.module.trainer)

    def remove_checkpoint(self, filepath: Any) -> None:
        """The consensus and the files of the agents."""
        self._files.settle(filepath)
        if self._files.own_disk:
            self.checkpoint_io.remove_checkpoint(filepath)
        super().remove_checkpoint(filepath)
        if self.is_global_zero or self._files.own_disk:
            remove_shards(self.checkpoint_io, os.fspath(filepath))

    @property
    def _fitting(self) -> bool:
        return self.lightning_module is not None and self.lightning_module.trainer.state.fn == "fit"

    def _restore_agents(self) -> None:
        """Right before the first batches are drawn: the order of the data depends on the random streams."""
        if self._files.due:
            self._files.restore(self._training.make_agents().each())

    def _compare_monitored(self) -> None:
        mine = monitored(self.module.trainer)
        self._differences.look_at(self._peers.gather(mine, "comparison of metrics"))

    # --- start and end of the loop

    def on_train_start(self) -> None:
        """What agents of an earlier loop of this fit have left behind, as in the trials of a tuner, is over."""
        super().on_train_start()
        self._training.end_leftovers()
        self._files.rewind()

    def on_train_end(self) -> None:
        """All agents end with the consensus, so the main process holds it under every launcher. A collective."""
        super().on_train_end()
        self._files.settle()
        self._take_over_consensus()

    def _take_over_consensus(self) -> None:
        if self.agents_differ:
            self._training.residents.restore(self._consensus.left_in(self.module))
