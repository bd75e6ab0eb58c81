"""One module and one optimizer for several agents, of which one at a time is swapped in."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from cga_lightning.core.loss_scaling import scaler_of
from cga_lightning.passes.module_state import ModuleState, State, overwrite
from cga_lightning.passes.random_state import RandomState

_IMMUTABLE = frozenset({type(None), bool, int, float, str})


class Belongings:
    """What one agent has for itself: in the shared module while it is swapped in, here otherwise.

    Attributes:
        state: the tensors of its module.
        optimizer_state: that of its parameters.
        scaler: that of the loss in 16-mixed precision.
        random_state: where its random streams are.
        group_values: what the optimizer has changed in the options of its parameter groups for this agent.
    """

    def __init__(
        self, state: State, optimizer_state: Any, scaler: GradScaler | None, random_state: RandomState
    ) -> None:
        self.state = state
        self.optimizer_state = optimizer_state
        self.scaler = scaler
        self.random_state = random_state
        self.group_values: list[dict[str, Any]] = []


class SharedModule:
    """Swaps agents in and out of a module: its tensors, optimizer state, loss scaler and random streams.

    Args:
        module: the module. The tensors that it holds now are the originals, to which `restore` returns.
        optimizer: of the module's parameters.
        precision: the object with the attribute `scaler`, if agents have scalers.
    """

    def __init__(self, module: nn.Module, optimizer: Optimizer, precision: Any) -> None:
        self.module_state = ModuleState(module)
        self.optimizer = optimizer
        self._module = module
        self._originals = dict(zip(self.module_state.keys, self.module_state.capture(), strict=True))
        self._precision = precision
        self._inside: Belongings | None = None
        self._last: RandomState | None = None  # from which the generators come

    @property
    def scaler(self) -> GradScaler | None:
        """The loss scaler of the agent inside."""
        return scaler_of(self._precision)

    def contents(self, copied: bool) -> tuple[State, Any, GradScaler | None]:
        """What the module holds now: tensors, optimizer state and scaler, the same objects or copies of them."""
        tensors = self.module_state.capture()
        if not copied:
            return tensors, self.optimizer.state, self.scaler
        tensors = [tensor.clone() for tensor in tensors]
        optimizer_state = defaultdict(dict, {p: copy.deepcopy(state) for p, state in self.optimizer.state.items()})
        return tensors, optimizer_state, copy.deepcopy(self.scaler)

    def belongs_to(self, agent: Belongings) -> None:
        """`agent` is inside, with all that the module holds now."""
        self._inside = agent

    def swap_in(self, agent: Belongings) -> RandomState:
        """The module is that of `agent` now; not while a graph of its parameters is alive.

        Returns:
            The random state now.
        """
        if agent is self._inside:
            self.refresh_random_state()
            return agent.random_state
        self.swap_out()
        self.module_state.activate(agent.state)
        self.optimizer.state = agent.optimizer_state
        if agent.scaler is not None:
            self._precision.scaler = agent.scaler
        agent.random_state.restore(self._last)
        self._inside, self._last = agent, agent.random_state
        return agent.random_state

    def swap_out(self) -> None:
        """Nobody is inside: the agent takes back what may have been replaced. The module keeps its tensors."""
        if self._inside is not None:
            self.refresh_tensors()
            self._inside.optimizer_state = self.optimizer.state
            self.refresh_random_state()
            self._inside = None

    def refresh_random_state(self) -> None:
        """Note only where the random streams are."""
        if self._inside is not None:
            self._inside.random_state = self._last = RandomState.capture(since=self._last)

    def look_again(self) -> None:
        """The module may have got parameters or buffers."""
        self.module_state = ModuleState(self._module)

    def refresh_tensors(self) -> None:
        """Note only the tensors, which takes a hundredth of the time."""
        if self._inside is not None:
            self._inside.state = self.module_state.capture()

    def point_at(self, agent: Belongings, places: Sequence[int], tensors: Sequence[Tensor]) -> None:
        """Let tensors of the agent's module be these, whether it is inside or not."""
        inside = agent is self._inside
        for place, tensor in zip(places, tensors, strict=True):
            agent.state[place] = tensor
            if inside:
                self.module_state.parameters[place].data = tensor

    def restore(self, values: State) -> None:
        """Back to the original tensors, with these values."""
        self.swap_out()
        module_state = ModuleState(self._module)
        current = zip(module_state.keys, module_state.capture(), values, strict=True)
        known = ((self._originals.get(key, tensor), tensor, value) for key, tensor, value in current)
        originals = [original if original.shape == value.shape else tensor for original, tensor, value in known]
        overwrite(originals, values)
        module_state.activate(originals)

    def optimize(self, agents: Sequence[Belongings]) -> Iterator[int]:
        """Swap every agent in for an optimizer step; yields its index.

        The options of the parameter groups (learning rate, momentum) are shared, since schedulers set them once for
        all; an option that the step itself changes is kept per agent.
        """
        shared = [_options(group) for group in self.optimizer.param_groups]
        for index, agent in enumerate(agents):
            self.swap_in(agent)
            agent.group_values += [{} for _ in shared[len(agent.group_values) :]]  # groups may have been added
            mine = [common | own for common, own in zip(shared, agent.group_values, strict=True)]
            _set_options(self.optimizer.param_groups, mine)
            yield index
            for group, old, own in zip(self.optimizer.param_groups, mine, agent.group_values, strict=True):
                own.update({name: value for name, value in _options(group).items() if _differs(value, old.get(name))})
        _set_options(self.optimizer.param_groups, shared)
        self.swap_out()


def _options(group: dict[str, Any]) -> dict[str, Any]:
    return {name: _copied(value) for name, value in group.items() if name != "params"}


def _set_options(groups: Sequence[dict[str, Any]], options: Sequence[dict[str, Any]]) -> None:
    for group, values in zip(groups, options, strict=True):
        params = group["params"]
        group.clear()
        group.update({name: _copied(value) for name, value in values.items()}, params=params)


def _copied(value: Any) -> Any:
    return value if type(value) in _IMMUTABLE else copy.copy(value)


def _differs(new: Any, old: Any) -> bool:
    return bool(new is not old and (type(new) is not type(old) or new != old))
