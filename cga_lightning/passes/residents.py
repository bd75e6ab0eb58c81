"""The agents that live in this process: one, or all of a simulation, around the user's one module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cga_lightning.copy_on_write import address, lazily_copied, shares_memory
from cga_lightning.core.agent import Agent
from cga_lightning.core.driver import OwnGradient
from cga_lightning.core.layout import FlatLayout
from cga_lightning.core.loss_scaling import unscale
from cga_lightning.passes.micro_batches import Backward, MicroBatches
from cga_lightning.passes.module_state import ModuleState, State
from cga_lightning.passes.parameters import Applied, SparseGradients, same_objects, set_gradients, trainable
from cga_lightning.passes.random_state import RandomState
from cga_lightning.passes.shared_module import Belongings, SharedModule
from cga_lightning.topology import Topology


class Resident(Belongings):
    """One agent, its share of the module, and what it has seen in this step.

    Attributes:
        agent: what the algorithm sees.
        flat: its parameters `[d]`.
        views: its trainable parameters, in `flat`.
        model: its parameters as they were when the step began `[d]`; None between steps.
        flat_grad: memory for the own gradient `[d]`.
        grad_views: one per trainable parameter, in `flat_grad`.
        applied: which directions its optimizer gets.
        grads: what every trainable parameter has as its gradient.
        micro_batches: those of this step.
    """

    agent: Agent
    flat: Tensor | None = None
    model: Tensor | None = None
    views: list[Tensor]
    flat_grad: Tensor
    grad_views: list[Tensor]
    applied: Applied
    micro_batches: MicroBatches

    def __init__(self, *belongings: Any) -> None:
        super().__init__(*belongings)
        self.grads: list[Tensor | None] = []


class Residents:
    """Keeps the parameters of each agent as views into its flat vector, so that models travel and mix without a copy.

    Args:
        module: the user's module, in which one agent at a time is swapped in. A single agent keeps its tensors.
        optimizer: of its parameters.
        precision: see `SharedModule`.
        random_states: where the random streams of the agents start; one per agent.
        backward: one pass of one micro-batch, for cross-gradients.

    Attributes:
        differ: whether the agents have models of their own; False once all have taken over their mean.
        parameters: those that are trained and exchanged.
        layout: where they lie in the flat vectors.
    """

    layout: FlatLayout

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        precision: Any,
        random_states: Sequence[RandomState],
        backward: Backward,
    ) -> None:
        self.differ = True
        self.parameters: list[nn.Parameter] = []
        self._sparse = SparseGradients()
        self.shared = SharedModule(module, optimizer, precision)
        self._module = module
        self._backward = backward
        several = len(random_states) > 1
        self._residents = [Resident(*self.shared.contents(copied=several), state) for state in random_states]
        if self._is_single:
            self.shared.belongs_to(self.first)
        else:
            self.first.random_state = RandomState.capture()  # whose streams the data has been drawn from

    def __iter__(self) -> Iterator[Resident]:
        return iter(self._residents)

    @property
    def first(self) -> Resident:
        """The one that is in the module between steps."""
        return self._residents[0]

    @property
    def _is_single(self) -> bool:
        return len(self._residents) == 1

    @property
    def agents(self) -> list[Agent]:
        """What the algorithm sees of them."""
        return [resident.agent for resident in self._residents]

    # --- parameters

    @property
    def outdated(self) -> bool:
        """Whether other parameters are trainable now than the agents were made for."""
        return not same_objects(trainable(self._module), self.parameters)

    def make_agents(self, topology: Topology, ranks: Sequence[int]) -> None:
        """Agents for the parameters that are trainable now; algorithms start anew, at the same step."""
        parameters = trainable(self._module)
        if self._is_single:
            self.shared.look_again()
        self.shared.refresh_tensors()
        self.parameters, self.layout = parameters, FlatLayout(parameters)
        self._sparse = SparseGradients()
        place = {id(parameter): i for i, parameter in enumerate(self.shared.module_state.parameters)}
        self._places = [place[id(parameter)] for parameter in parameters]
        for rank, resident in zip(ranks, self._residents, strict=True):
            self._make_agent(resident, rank, topology)

    def _make_agent(self, resident: Resident, rank: int, topology: Topology) -> None:
        params = self.layout.write([resident.state[i] for i in self._places], out=self.layout.zeros())
        step = resident.agent.step if hasattr(resident, "agent") else 0
        resident.agent = Agent(rank, topology, params, self._gradient_of(resident), self.layout)
        resident.agent.step = step
        resident.micro_batches = MicroBatches(self._module, self.parameters)
        resident.flat_grad = self.layout.zeros()
        resident.grad_views = self.layout.views(resident.flat_grad)
        resident.applied = Applied()
        self._hand_out(resident)

    def collect(self) -> None:
        """After the user's code has run: take over from the modules what it has given other memory."""
        self.shared.refresh_tensors()
        for resident in self._residents:
            resident.micro_batches.look_again()
            for place, view in zip(self._places, resident.views, strict=True):
                tensor = resident.state[place]
                if tensor is not view and address(tensor) != address(view):
                    view.copy_(tensor)

    def begin_step(self) -> None:
        """Nothing is accumulated yet, and what the passes will write into the parameters is to be known."""
        for resident in self._residents:
            resident.grads = [None] * len(self.parameters)
            resident.model = lazily_copied(resident.agent.params)

    @contextmanager
    def at_the_models_of_the_step(self) -> Iterator[None]:
        """Inside, the agents have the parameters that the step began with; what the passes have written comes after.

        So a write counts as a part of the agent's own optimizer step, and the models that are mixed are those that
        were sent.
        """
        written = [(resident, taken) for resident in self._residents if (taken := _take_written(resident)) is not None]
        yield
        for resident, (model, now) in written:
            params = resident.agent.params
            params.copy_(torch.where(params == model, now, params + (now - model)))

    def hand_out(self) -> None:
        """Let the modules' parameters be views into the flat vectors, which mixing replaces."""
        for resident in self._residents:
            self._hand_out(resident)

    def _hand_out(self, resident: Resident) -> None:
        if resident.flat is resident.agent.params:
            return
        resident.flat = resident.agent.params
        resident.views = self.layout.views(resident.agent.params)
        self.shared.point_at(resident, self._places, resident.views)

    def states(self) -> list[State]:
        """The tensors of every agent."""
        if self._is_single:  # whose module may have got buffers meanwhile
            return [ModuleState(self._module).capture()]
        if self.differ:
            self.shared.refresh_tensors()
        return [resident.state for resident in self._residents]

    def restore(self, consensus: State) -> None:
        """All agents take over the consensus, and the module its own tensors."""
        self.shared.restore(consensus)
        self.differ = False

    # --- gradients

    def keep_gradients(self, resident: Resident) -> None:
        """In the agent's flat gradient, so that the memory they came in is free, and warm, for the next pass."""
        self.take_gradients(resident)
        views = resident.grad_views
        self.layout.write(resident.grads, resident.flat_grad, views)
        resident.grads = [None if grad is None else view for grad, view in zip(resident.grads, views, strict=True)]
        set_gradients(self.parameters, [None] * len(views))

    def take_gradients(self, resident: Resident) -> None:
        """What the backward pass has left at the parameters."""
        resident.grads = [parameter.grad for parameter in self.parameters]
        self._sparse.look_at(resident.grads)

    def give_gradients(self, resident: Resident) -> None:
        """To the parameters: what the agent has accumulated, or the direction of its step."""
        set_gradients(self.parameters, resident.grads)

    def own_gradients(self) -> list[OwnGradient]:
        """What the agents have accumulated, for the driver."""
        return [self._own_gradient(resident) for resident in self._residents]

    def _own_gradient(self, resident: Resident) -> OwnGradient:
        if not self._is_single:  # it is there, see keep_gradients
            return OwnGradient([resident.flat_grad], lambda: resident.flat_grad, resident.scaler)
        grads, where = resident.grads, (resident.flat_grad, resident.grad_views)
        parts = [grad.coalesce().values() if grad.is_sparse else grad for grad in grads if grad is not None]
        return OwnGradient(parts, lambda: self.layout.write(grads, *where), resident.scaler)

    def take_directions(self, directions: Sequence[Tensor | None]) -> None:
        """The directions `[d]` of the optimizer steps; None where the own gradient stays."""
        for resident, direction in zip(self._residents, directions, strict=True):
            if direction is not None:
                known = direction is resident.flat_grad
                views = resident.grad_views if known else self.layout.views(direction)
                resident.grads = resident.applied.of(resident.grads, views)
            resident.grads = self._sparse.again(resident.grads)

    def _gradient_of(self, resident: Resident) -> Callable[[Tensor], Tensor]:
        def gradient(at: Tensor) -> Tensor:
            now = self.shared.swap_in(resident)
            return unscale(resident.micro_batches.gradient(self.layout, self._backward, at, now), resident.scaler)

        return gradient

    # --- one after the other

    def swap_in(self, resident: Resident) -> RandomState:
        """The module is that of this agent now. Returns the random state now."""
        return self.shared.swap_in(resident)

    def each(self) -> Iterator[Resident]:
        """Every agent while it is swapped in, with its options of the parameter groups; the first one stays."""
        for index in self.shared.optimize(self._residents):
            yield self._residents[index]
        self.shared.swap_in(self.first)


def _take_written(resident: Resident) -> tuple[Tensor, Tensor] | None:
    """Put the parameters back to what they were when the step began; returns both if they were another, `[d]` each."""
    params, model, resident.model = resident.agent.params, resident.model, None
    if model is None or shares_memory(params, model) or (params.is_cpu and torch.equal(params, model)):
        return None
    now = params.clone()
    params.copy_(model)
    return model, now
