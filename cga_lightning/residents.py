"""Several agents taking turns at one module and one optimizer."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from cga_lightning.agent import Agent
from cga_lightning.module_state import ModuleState, State, overwrite
from cga_lightning.sandbox import RandomState, seed_all
from cga_lightning.window import Window


class Resident:
    """What one simulated agent has for itself, while it is not its turn.

    Args:
        state: the tensors of its module.
        optimizer: its state is copied, the parameters in it are not.
        scaler: that of the loss in 16-mixed precision, to be copied.
        random: where its random streams start.
    """

    agent: Agent
    flat_grad: Tensor

    def __init__(self, state: State, optimizer: Optimizer, scaler: GradScaler | None, random: RandomState) -> None:
        self.state = state
        self.random = random
        self.scaler = copy.deepcopy(scaler)
        self.optimizer_state = defaultdict(dict, {p: copy.deepcopy(s) for p, s in optimizer.state.items()})
        self.group_values: list[dict[str, Any]] = [{} for _ in optimizer.param_groups]
        self.grads: list[Tensor | None] = []
        self.window = Window()


class Turns:
    """Lets one resident at a time live in the module: its tensors, optimizer state, loss scaler and random streams.

    What the module holds now is kept as the `home` tensors, to which `settle` returns.
    """

    def __init__(self, module: nn.Module, optimizer: Optimizer, precision: Any) -> None:
        self.module_state = ModuleState(module)
        self.optimizer = optimizer
        self._precision = precision
        self.home = self.module_state.capture()
        self._active: Resident | None = None

    def give(self, resident: Resident) -> None:
        """It is `resident`'s turn now; not while a graph of the module's parameters is alive."""
        if resident is self._active:
            return
        self.end()
        self.module_state.activate(resident.state)
        self.optimizer.state = resident.optimizer_state
        if resident.scaler is not None:
            self._precision.scaler = resident.scaler
        resident.random.restore()
        self._active = resident

    def end(self) -> None:
        """Nobody's turn: take back what the active resident may have replaced. The module keeps its tensors."""
        if self._active is not None:
            self._active.state = self.module_state.capture()
            self._active.optimizer_state = self.optimizer.state
            self._active.random = RandomState.capture()
            self._active = None

    def refresh(self) -> None:
        """Note what the active resident may have replaced; it stays its turn."""
        if self._active is not None:
            self._active.state = self.module_state.capture()

    def settle(self, state: State) -> None:
        """Back to the module's own tensors, with the values of `state`."""
        self.end()
        overwrite(self.home, state)
        self.module_state.activate(self.home)

    def optimize(self, residents: Sequence[Resident]) -> Iterator[Resident]:
        """Give every resident its turn for an optimizer step.

        The options of the parameter groups (learning rate, momentum) are shared, since schedulers set them once for
        all; an option that the step itself changes is kept per resident.
        """
        shared = [_options(group) for group in self.optimizer.param_groups]
        for resident in residents:
            self.give(resident)
            resident.group_values += [{} for _ in shared[len(resident.group_values) :]]  # groups may have been added
            mine = [common | own for common, own in zip(shared, resident.group_values, strict=True)]
            _set_options(self.optimizer.param_groups, mine)
            yield resident
            for group, old, own in zip(self.optimizer.param_groups, mine, resident.group_values, strict=True):
                own.update({name: value for name, value in _options(group).items() if _differs(value, old.get(name))})
        _set_options(self.optimizer.param_groups, shared)
        self.end()


def random_states(agents: int) -> list[RandomState]:
    """Where the random streams of the agents start: the seed now plus the rank, as with one process per agent."""
    before, seed = RandomState.capture(), torch.initial_seed()
    states = []
    for rank in range(agents):
        seed_all(seed + rank)
        states.append(RandomState.capture())
    before.restore()
    return states


def _options(group: dict[str, Any]) -> dict[str, Any]:
    return {name: copy.copy(value) for name, value in group.items() if name != "params"}


def _set_options(groups: Sequence[dict[str, Any]], options: Sequence[dict[str, Any]]) -> None:
    for group, values in zip(groups, options, strict=True):
        params = group["params"]
        group.clear()
        group.update({name: copy.copy(value) for name, value in values.items()}, params=params)


def _differs(new: Any, old: Any) -> bool:
    return bool(new is not old and (type(new) is not type(old) or new != old))
