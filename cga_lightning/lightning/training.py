"""The agents of this process in one fit: made when the first step needs them, then taken from step to step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cga_lightning.copies import to_device
from cga_lightning.core.communication import Communicator
from cga_lightning.core.driver import StepDriver
from cga_lightning.lightning import internals
from cga_lightning.lightning.cross_gradients import CrossGradients
from cga_lightning.lightning.refusals import refuse_late_closure
from cga_lightning.passes.module_state import Key, ModuleState, State, overwrite
from cga_lightning.passes.random_state import RandomStreams
from cga_lightning.passes.residents import Residents
from cga_lightning.passes.shared_module import SharedModule

if TYPE_CHECKING:
    from cga_lightning.lightning.agent_strategy import AgentStrategy


class Training:
    """Connects what lives in the module (`Residents`) with the algorithm (`StepDriver`).

    Args:
        strategy: whose algorithm, topology, module and optimizer take part.
        cross_gradients: runs passes at other models.
        before_making: called before agents are made for other parameters than before.
    """

    def __init__(
        self, strategy: AgentStrategy, cross_gradients: CrossGradients, before_making: Callable[[], None]
    ) -> None:
        self._strategy = strategy
        self._cross_gradients = cross_gradients
        self._before_making = before_making
        self.streams = RandomStreams([])
        self._residents: Residents | None = None
        self._driver: StepDriver | None = None

    # --- a fit

    def start(self, communicator: Communicator, streams: RandomStreams) -> None:
        """A fit begins. Its agents come later, when a checkpoint has been loaded; those of an earlier one are over.

        Args:
            communicator: carries their messages.
            streams: the random ones of the agents of this process.
        """
        self._cross_gradients.start()
        self._driver = StepDriver(self._strategy.algorithm, [], communicator)
        self.streams = streams
        self._residents = None

    def end_agents(self) -> None:
        """The module has its own tensors again; other agents, who start from it, are made when they are needed."""
        if self._residents is None:
            return
        if self.agents_differ:
            self._residents.give_up()
        self.start(self.driver.communicator, self.streams)

    def end_leftovers(self) -> None:
        """A loop starts: agents are over that have ended with the consensus, or in the middle of a step."""
        if self._residents is not None and (not self._residents.differ or len(self._residents.first.micro_batches)):
            self.end_agents()

    @property
    def is_new(self) -> bool:
        """Whether a fit has begun and made no agents yet: each of them will start from the module."""
        return self._driver is not None and self._residents is None

    @property
    def communicator(self) -> Communicator | None:
        """What carries the messages; None before the first fit."""
        return None if self._driver is None else self._driver.communicator

    @property
    def residents(self) -> Residents:
        """The agents of this process.

        Raises:
            RuntimeError: before the first training step.
        """
        if self._residents is None:
            raise RuntimeError("There are no agents before the first training step; ask for them later.")
        return self._residents

    @property
    def driver(self) -> StepDriver:
        """What runs the algorithm.

        Raises:
            RuntimeError: before the first fit.
        """
        if self._driver is None:
            raise RuntimeError("Nothing has been trained yet; ask during fit or after it.")
        return self._driver

    @property
    def agents_differ(self) -> bool:
        """Whether agents have models of their own, as they do from their first step until the end of fit."""
        return self._residents is not None and self._residents.differ

    @property
    def amid_step(self) -> bool:
        """Whether the agents have seen some of the batches of a step."""
        return self._residents is not None and len(self._residents.first.micro_batches) > 0

    @property
    def agents_alike(self) -> bool:
        """Whether the tensors of all agents of this process have the same shapes."""
        return not self.agents_differ or self.residents.alike

    @property
    def step(self) -> int:
        """How many steps the agents have made."""
        return 0 if self._driver is None else self._driver.step

    @property
    def traffic(self) -> Counter[str]:
        """Payload bytes that the agents of this process have sent so far, by name of the exchange."""
        return Counter() if self.communicator is None else Counter(self.communicator.traffic)

    def states(self) -> list[State]:
        """The tensors of the agents of this process; those of the module before the first training step."""
        if self._residents is None:
            return [ModuleState(self._strategy.module).capture()]
        return self._residents.states()

    def overwrite(self, values: Mapping[Key, Tensor]) -> None:
        """Copy values into these tensors of every agent of this process."""
        for _ in self.residents.in_turn():
            tensors = ModuleState(self._strategy.module).tensors
            overwrite([tensors[key] for key in values], list(values.values()))

    def diagnostics(self) -> list[Mapping[str, Tensor]]:
        """What is known of the last step of every agent of this process: scalars by name."""
        return [] if self._driver is None else [self._driver.diagnostics(agent) for agent in self._driver.agents]

    def present(self) -> Residents:
        """The agents, which are made if there are none yet."""
        return self.make_agents() if self._residents is None else self._residents

    # --- a step

    def make_agents(self) -> Residents:
        """Agents for what is trainable now, if there are none yet."""
        strategy, residents = self._strategy, self._residents
        if residents is None:
            what = (strategy.module, strategy.optimizers[0], strategy.precision_plugin)
            keep = internals.attributes_of_lightning(strategy.module)
            shared = SharedModule(*what, self.streams, keep)
            residents = self._residents = Residents(shared, self._cross_gradients.backward)
        if residents.outdated:
            self._before_making()
            residents.make_agents(strategy.topology, strategy.local_agents)
            self.driver.agents = residents.agents
        return residents

    def begin_micro_batch(self) -> Residents:
        """The first one of a step sends the first messages off.

        Raises:
            RuntimeError: when there was no optimizer step after the last micro-batch of a step.
        """
        seen = 0 if self._residents is None else len(self._residents.first.micro_batches)
        if not seen:
            residents = self.make_agents()
            residents.collect()
            residents.begin_step()
            self.driver.begin()
        refuse_late_closure(seen, self._strategy.module.trainer.accumulate_grad_batches)
        return self.residents

    def exchange(self) -> None:
        """The own gradients are there: take the models and directions from which the optimizer steps."""
        self.residents.collect()
        with self.residents.at_the_models_of_the_step():
            directions = self.driver.finish(self.residents.own_gradients())
        self.residents.end_passes()
        self.residents.hand_out()
        self.residents.take_directions(directions)

    def end_step(self) -> None:
        """The optimizer has stepped."""
        self.residents.collect()
        self.driver.end()
        self.residents.hand_out()
        for resident in self.residents:
            resident.micro_batches.clear()


def as_numbers(reports: Sequence[Mapping[str, Tensor]]) -> list[dict[str, float]]:
    """The same scalars in host memory: a device is waited for once."""
    values = [value.detach() for report in reports for value in report.values()]
    found = iter(
        torch.stack([to_device(value, values[0].device).double() for value in values]).tolist() if values else []
    )
    return [{name: next(found) for name in report} for report in reports]


def mean_by_name(reports: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """The mean of every value over the reports that have it, float64."""
    names = dict.fromkeys(name for report in reports for name in report)
    return {
        name: torch.stack([torch.as_tensor(report[name]).double() for report in reports if name in report]).mean()
        for name in names
    }
