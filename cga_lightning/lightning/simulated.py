"""N agents in one process: the same algorithms and the same module, without processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.optim import Optimizer

from cga_lightning.core.algorithm import Algorithm
from cga_lightning.core.communication import LocalCommunicator
from cga_lightning.lightning import internals
from cga_lightning.lightning.agent_files import Resume
from cga_lightning.lightning.agent_strategy import AgentStrategy, EvalModel
from cga_lightning.lightning.hooks import HooksInTurn
from cga_lightning.lightning.loaders import AgreedLoader, LoadersOfSimulation, Uneven
from cga_lightning.lightning.log_mean import log_mean, mean_output
from cga_lightning.lightning.peers import OneProcess
from cga_lightning.lightning.refusals import refuse_averages, refuse_uninitialized
from cga_lightning.passes.parameters import StepOnce
from cga_lightning.passes.random_state import RandomStreams, seed_all
from cga_lightning.passes.residents import Resident
from cga_lightning.topology import Topology

if TYPE_CHECKING:
    from pytorch_lightning import Trainer
    from pytorch_lightning.accelerators import Accelerator
    from pytorch_lightning.plugins import CheckpointIO, Precision


class SimulatedStrategy(AgentStrategy, SingleDeviceStrategy):
    """All agents of a run in one process and on one device, step by step together.

    Needs one train loader per agent, `fit(train_dataloaders=[...])` with a list of N, or a `PartitionedDataModule`. A
    training batch is then the list of the agents' batches. Each agent has its own parameters, buffers, attributes of
    the module, optimizer state and random streams; metrics of torchmetrics are shared. The module's hooks of the
    backward pass, the optimizer, training batches and epochs run once per agent, each with its own batch and outputs.
    Other hooks and those of callbacks run once, with agent 0 in the module: what they change there changes for all
    agents that had the same. What the agents log under one name is logged once, as their mean.

    Args:
        agents: the number N of agents.
        algorithm: an `Algorithm`, or its name: "cga", "compcga", "dpsgd", "sgp", "swarmsgd", ...
        topology: a `Topology`, or its name: "ring", "complete", "bipartite", "torus", ...
        uneven: when the agents' train loaders differ in length: "cycle" repeats the shorter ones, "min" cuts the
            longer ones, "error" refuses.
        eval_model: validate with the "consensus" (mean) of all models, with each agent's "own", or with that after one
            round of gossip ("mixed"); what is logged per epoch is the mean over agents. Checkpoints have the consensus.
        settle: how many rounds of gossip agents make before they are validated on their own, or handed out by
            `agent_state_dicts`; training and checkpoints stay as they are. The mean is reached after as many as the
            mixing matrix has distinct eigenvalues besides 1: 5 on a ring of 10, 3 on a bipartite graph of any size.
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
        settle: int = 0,
        resume: Resume = "agents",
        accelerator: Accelerator | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
    ) -> None:
        super().__init__(
            algorithm,
            topology,
            uneven=uneven,
            eval_model=eval_model,
            settle=settle,
            resume=resume,
            peers=OneProcess(),
            loaders=LoadersOfSimulation(uneven, lambda i, n: self._training.streams.drawing(i * self._agents // n)),
            accelerator=accelerator,
            checkpoint_io=checkpoint_io,
            precision_plugin=precision_plugin,
        )
        if isinstance(agents, bool) or not isinstance(agents, int):
            raise TypeError(f"agents must be the number of agents, an int, got {agents!r}.")
        self._bind(agents)
        self._agents = agents
        self._hooks = HooksInTurn(self, self._training.present, lambda: self._outputs)
        self._outputs: list[dict[str, Any]] = []
        self._batches_come = False  # before, what is transferred is one batch, such as the module's example input
        self.parallel_devices: list[torch.device] | None = None  # set by the Trainer

    @property
    def agents(self) -> int:
        """The number N of agents."""
        return self._agents

    @property
    def local_agents(self) -> Sequence[int]:
        """All of them."""
        return range(self._agents)

    # --- start

    @property
    def root_device(self) -> torch.device:
        """The one device of the Trainer."""
        return torch.device(self.parallel_devices[0] if self.parallel_devices else "cpu")

    def _configure_launcher(self) -> None:
        devices = len(self.parallel_devices or ())
        if devices > 1:
            raise ValueError(
                f"SimulatedStrategy runs all agents on one device, got Trainer(devices={devices}). Set devices=1, or "
                "use DecentralizedStrategy for one agent per process."
            )
        super()._configure_launcher()

    def setup(self, trainer: Trainer) -> None:
        """Seed every agent; they are made at the first step, when a checkpoint has been loaded."""
        refuse_uninitialized(self.module)
        if trainer.state.fn == "fit":
            refuse_averages(trainer)
            self._training.start(LocalCommunicator(), RandomStreams.seeded(self.local_agents))
            self._settling.start(LocalCommunicator())
            self._hooks.install()
        super().setup(trainer)

    def on_train_start(self) -> None:
        """Check that there is a loader for every agent."""
        super().on_train_start()
        loaders = internals.train_loaders(self.module.trainer)
        if isinstance(loaders, AgreedLoader):
            loaders = loaders.wrapped
        if not isinstance(loaders, list | tuple) or len(loaders) != self.agents:
            found = f"{len(loaders)}" if isinstance(loaders, list | tuple) else f"a {type(loaders).__name__}"
            raise ValueError(
                f"SimulatedStrategy(agents={self.agents}) needs a list of {self.agents} train loaders, one per agent, "
                f"got {found}. Pass fit(train_dataloaders=[...]) or a PartitionedDataModule."
            )
        self._training.present()
        self._batches_come = True
        internals.transfer_one_by_one(self.module)

    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        """Transfer the agents' batches one by one, so that the user's hooks see one batch."""
        if not (self._batches_come and self.module.trainer.training):
            return super().batch_to_device(batch, device, dataloader_idx)
        transfer = super().batch_to_device
        return [transfer(part, device, dataloader_idx) for part in batch]

    # --- one step

    def training_step(self, batches: Any, *args: Any) -> Any:
        """Forward and backward of every agent on its own batch."""
        residents = self._training.begin_micro_batch()
        with log_mean(self.module) as logs:
            outputs, self._outputs = [], []
            for resident, batch in zip(residents, batches, strict=True):
                logs.next_batch(batch)
                outputs.append(self._own_pass(resident, batch, *args))
        residents.stay()
        return mean_output(outputs)

    def _own_pass(self, resident: Resident, *micro_batch: Any) -> Any:
        residents = self._training.residents
        residents.begin_pass(resident, *micro_batch)
        residents.give_gradients(resident)
        output = self._cross.own_pass(*micro_batch)
        super().backward(self._cross.loss(output), self.optimizers[0])
        residents.keep_gradients(resident)
        self._outputs.append(self._cross.output(output))
        return output

    def backward(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Done already, for one agent after the other; this is the mean of their losses."""
        return closure_loss

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """Exchange, then let every agent step."""
        self._cross.forbid_steps_in_passes()
        result = closure()
        self._training.exchange()
        residents = self._training.residents
        with log_mean(self.module):
            for resident in residents.each():
                residents.give_gradients(resident)
                once = StepOnce(lambda: result)
                super().optimizer_step(optimizer, once, model, **kwargs)
                once.check()
        self._training.end_step()
        residents.stay()
        return result

    # --- evaluation

    def _let_settle(self) -> None:
        self._settling.begin_validation(self.module, self._training.residents)

    def on_validation_end(self) -> None:
        """What was written into buffers of agents that had settled stays theirs."""
        if self.agents_differ:
            self._settling.end_validation(self._training.residents)
        super().on_validation_end()

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Validate with the consensus, or with every agent's own model, one after the other."""
        if self.eval_model == "consensus" or not self.agents_differ:
            return super().validation_step(*args, **kwargs)
        with log_mean(self.module) as logs:
            logs.next_batch(args)
            outputs = []
            for place, _ in enumerate(self._training.residents.in_turn()):
                with self._settling.in_module(place):
                    outputs.append(super().validation_step(*args, **kwargs))
            return outputs

    # --- end

    def teardown(self) -> None:
        """After an exception too: the module ends with the consensus, the agents' models stay.

        With the model of agent 0 where the exception tells that there is no consensus, see `BufferShapes`.
        """
        self._consensus.drop()
        self._settling.drop()
        if self._training.agents_alike:
            self._take_over_consensus()
        else:
            self._training.end_agents()
        internals.transferring_as_usual(self.module)
        self._batches_come = False
        self._hooks.remove()
        if self._fitting:
            seed_all(int(torch.randint(2**31, ())))  # a later fit has other streams, as in a program of its own
        super().teardown()
