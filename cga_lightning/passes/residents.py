"""The agents that live in this process: one, or all of a simulation, around the user's one module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cga_lightning.copy_on_write import lazily_copied, shares_memory
from cga_lightning.core.agent import Agent
from cga_lightning.core.driver import OwnGradient
from cga_lightning.core.layout import FlatLayout
from cga_lightning.core.loss_scaling import unscale
from cga_lightning.passes.micro_batches import Backward, MicroBatches
from cga_lightning.passes.module_state import ModuleState, State
from cga_lightning.passes.parameters import Applied, SparseGradients, same_objects, set_gradients, trainable
from cga_lightning.passes.shared_module import Belongings, SharedModule
from cga_lightning.topology import Topology


class Resident(Belongings):
    """One agent, its share of the module, and what it has seen in this step.

    Attributes:
        agent: what the algorithm sees.
        flat: its parameters `[d]`, in which `views` lie.
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
        shared: the user's module, in which one agent at a time is swapped in. A single agent keeps its tensors.
        backward: one pass of one micro-batch, for cross-gradients.

    Attributes:
        differ: whether the agents have models of their own; False once all have taken over their mean.
        parameters: those that are trained and exchanged.
        layout: where they lie in the flat vectors.
    """

    layout: FlatLayout

    def __init__(self, shared: SharedModule, backward: Backward) -> None:
        self.differ = True
        self.parameters: list[nn.Parameter] = []
        self._sparse = SparseGradients()
        self.shared = shared
        self._backward = backward
        self._last_states: list[State] | None = None
        self._residents = [Resident(*belongings) for belongings in shared.belongings()]
        shared.belongs_to(self.first)

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
        return not same_objects(trainable(self.shared.module), self.parameters)

    def make_agents(self, topology: Topology, ranks: Sequence[int]) -> None:
        """Agents for the parameters that are trainable now; algorithms start anew, at the same step."""
        self.parameters = trainable(self.shared.module)
        self.layout = FlatLayout(self.parameters)
        self._sparse = SparseGradients()
        for rank, resident in zip(ranks, self._residents, strict=True):
            self.shared.swap_in(resident)
            self._make_agent(resident, rank, topology)
        self.stay()

    def _make_agent(self, resident: Resident, rank: int, topology: Topology) -> None:
        params = self.layout.write([parameter.data for parameter in self.parameters], out=self.layout.zeros())
        step = resident.agent.step if hasattr(resident, "agent") else 0
        resident.agent = Agent(rank, topology, params, self._gradient_of(resident), self.layout)
        resident.agent.step = step
        resident.micro_batches = MicroBatches(self.parameters, self.shared.snapshot, resident.large)
        resident.flat_grad = self.layout.zeros()
        resident.grad_views = self.layout.views(resident.flat_grad)
        resident.applied = Applied()
        self.shared.touch()
        self._hand_out(resident)

    def collect(self) -> None:
        """After the user's code has run: take over from the module what it has given other memory."""
        self.shared.take_over()
        for resident in self._residents:
            resident.micro_batches.look_again()

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

    def end_passes(self) -> None:
        """The passes of this step are over."""
        for resident in self._residents:
            resident.large.end_step()

    def hand_out(self) -> None:
        """Let the parameters be views into the flat vectors, which mixing replaces."""
        for resident in self._residents:
            self._hand_out(resident)

    def _hand_out(self, resident: Resident) -> None:
        if resident.flat is resident.agent.params:
            return
        resident.flat = resident.agent.params
        self.shared.entrust(resident, self.parameters, self.layout.views(resident.flat))

    def states(self) -> list[State]:
        """The tensors of every agent; those of several agents do not change any more.

        Raises:
            RuntimeError: agents have other buffers than the first one.
        """
        if self._is_single:
            return [ModuleState(self.shared.module).capture()]
        if self._last_states is not None:
            return self._last_states
        named = self._named_states()
        for rank, (names, state) in enumerate(named):
            _check_same(*named[0], names, state, rank)
        return [state for _, state in named]

    @property
    def alike(self) -> bool:
        """Whether all agents have the same buffers, in the same shapes."""
        shapes = [[(n, tensor.shape) for n, tensor in zip(*named, strict=True)] for named in self._named_states()]
        return shapes[1:] == shapes[:-1]

    def _named_states(self) -> list[tuple[list[str], State]]:
        inside, is_for_all, found = self.shared.inside, self.shared.is_for_all, []
        for resident in self._residents:
            self.shared.swap_in(resident)
            module_state = ModuleState(self.shared.module)
            found.append((module_state.names, [lazily_copied(tensor) for tensor in module_state.capture()]))
        if inside is None or is_for_all:
            self.stay()
        else:
            self.shared.swap_in(inside)
            self.shared.touch()
        return found

    def restore(self, consensus: State) -> None:
        """All agents take over the consensus, and the module its own tensors."""
        values = [lazily_copied(tensor) for tensor in consensus]  # the module may hold it until the next line
        self._last_states = self.states()
        self._end(values)

    def give_up(self) -> None:
        """There is no consensus: the module gets its own tensors with the values of the first agent."""
        self.stay()
        self._end(ModuleState(self.shared.module).capture())

    def _end(self, values: State) -> None:
        self.stay()
        self.shared.restore(values)
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
        resident.micro_batches.learn()
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
            now = self.shared.swap_in(resident, but_contents=True)  # the passes start from others, and leave its own
            return unscale(resident.micro_batches.gradient(self.layout, self._backward, at, now), resident.scaler)

        return gradient

    # --- one after the other

    def begin_pass(self, resident: Resident, *micro_batch: Any) -> None:
        """The own pass of this agent on a micro-batch follows: the module is that of this agent now."""
        start = self.shared.swap_in(resident)
        resident.micro_batches.append(*micro_batch, start=start)
        self.shared.touch()

    def each(self) -> Iterator[Resident]:
        """Every agent while it is swapped in, with its options of the parameter groups; the first one stays."""
        for index in self.shared.optimize(self._residents):
            yield self._residents[index]
        self.stay()

    def in_turn(self) -> Iterator[Resident]:
        """Every agent while it is swapped in; the first one stays."""
        for resident in self._residents:
            self.shared.swap_in(resident)
            self.shared.touch()
            yield resident
        self.stay()

    def stay(self) -> None:
        """Between the turns of the agents the first one is in the module."""
        self.shared.stay(self.first, self._residents[1:])


def _check_same(names: list[str], state: State, others: list[str], other: State, rank: int) -> None:
    first, second = ({n: tuple(t.shape) for n, t in zip(*of, strict=True)} for of in ((names, state), (others, other)))
    for name in {**first, **second}:
        if first.get(name) != second.get(name):
            has, lacks = (f"{of[name]}" if name in of else "missing" for of in (first, second))
            raise RuntimeError(
                f"The buffer '{name}' has the shape {has} on agent 0, but {lacks} on agent {rank}, so there is no "
                "mean over agents. Let all agents register the same buffers, in the same shapes; what depends on the "
                "data of an agent is a plain attribute: self.name = tensor."
            )


def _take_written(resident: Resident) -> tuple[Tensor, Tensor] | None:
    """Put the parameters back to what they were when the step began; returns both if they were another, `[d]` each."""
    params, model, resident.model = resident.agent.params, resident.model, None
    if model is None or shares_memory(params, model) or (params.is_cpu and torch.equal(params, model)):
        return None
    now = params.clone()
    params.copy_(model)
    return model, now
