"""One module and one optimizer for several agents, of which one at a time is swapped in."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from typing import Any

from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer

from cga_lightning.copy_on_write import address
from cga_lightning.core.loss_scaling import scaler_of
from cga_lightning.passes.merging import merged
from cga_lightning.passes.module_state import ModuleState, State, overwrite
from cga_lightning.passes.parameters import trainable
from cga_lightning.passes.random_state import RandomState, RandomStreams
from cga_lightning.passes.silence import is_metric
from cga_lightning.passes.snapshot import LargeContainers, Snapshot

_IMMUTABLE = frozenset({type(None), bool, int, float, str})


class Belongings:
    """What one agent has for itself: in the shared module while it is swapped in, here otherwise.

    Attributes:
        contents: of its module, but for the trained parameters; None for an agent that has the module for itself.
        parameters: those that are trained.
        views: their values, one per trained parameter.
        optimizer_state: that of its parameters.
        scaler: that of the loss in 16-mixed precision.
        stream: the number of its random streams.
        group_values: what the optimizer has changed in the options of its parameter groups for this agent.
        large: the containers in the module into which is not looked at every step.
    """

    def __init__(self, contents: Snapshot | None, optimizer_state: Any, scaler: GradScaler | None, stream: int) -> None:
        self.contents = contents
        self.parameters: Sequence[nn.Parameter] = ()
        self.views: Sequence[Tensor] = ()
        self.optimizer_state = optimizer_state
        self.scaler = scaler
        self.stream = stream
        self.group_values: list[dict[str, Any]] = []
        self.large = LargeContainers()


class SharedModule:
    """Swaps agents in and out of a module: its contents, parameters, optimizer state, loss scaler and random streams.

    Whoever is swapped in finds in the module what it has left there: attributes, buffers and frozen parameters get
    their contents back in place, trained parameters point at its values. The metrics of torchmetrics are shared: they
    accumulate over agents, as those of several processes do.

    Args:
        module: the module. The tensors that it holds now are the originals, to which `restore` returns.
        optimizer: of the module's parameters.
        precision: the object with the attribute `scaler`, if agents have scalers.
        streams: the random ones, one for every agent of this process.
        keep: names of attributes of the module that do not belong to an agent.

    Attributes:
        inside: the agent that is swapped in.
        metrics: of torchmetrics, wherever the module holds them.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        precision: Any,
        streams: RandomStreams,
        keep: Set[str] = frozenset(),
    ) -> None:
        self.optimizer = optimizer
        self.inside: Belongings | None = None
        self.module = module
        self._keep = keep
        self._precision = precision
        self._streams = streams
        self._present: Snapshot | None = None  # what the module holds now, if that is known
        self._staying: tuple[Snapshot, Sequence[Belongings]] | None = None
        self.metrics = [m for m in Snapshot(module, leave=trainable(module)).modules if is_metric(m)]
        self._originals = ModuleState(module).tensors

    @property
    def scaler(self) -> GradScaler | None:
        """The loss scaler of the agent inside."""
        return scaler_of(self._precision)

    def belongings(self) -> list[tuple[Snapshot | None, Any, GradScaler | None, int]]:
        """What the module holds now, for every agent: contents, optimizer state and scaler; several have copies."""
        if len(self._streams) == 1:
            return [(None, self.optimizer.state, self.scaler, 0)]
        contents = self._capture(trainable(self.module), None)
        return [
            (contents, self._copied_state(), copy.deepcopy(self.scaler), stream) for stream in range(len(self._streams))
        ]

    def _copied_state(self) -> dict[Tensor, Any]:
        return defaultdict(dict, {p: copy.deepcopy(state) for p, state in self.optimizer.state.items()})

    def belongs_to(self, agent: Belongings) -> None:
        """`agent` is inside, with all that the module holds now."""
        self.inside, self._present = agent, None

    def stay(self, agent: Belongings, others: Sequence[Belongings]) -> None:
        """Swap the agent in for code that runs once for all.

        What it changes in the contents, such as the mode of a layer, changes for the others too, where they have what
        this agent has had.
        """
        self.swap_in(agent)
        self.touch()
        if agent.contents is not None:
            self._staying = (agent.contents, others)

    @property
    def is_for_all(self) -> bool:
        """Whether the agent inside is there for code that runs once for all."""
        return self._staying is not None

    # --- contents

    def _capture(self, parameters: Sequence[nn.Parameter], large: LargeContainers | None) -> Snapshot:
        return Snapshot(self.module, leave=(*parameters, *self.metrics), keep=self._keep, large=large)

    def _contents_of(self, agent: Belongings) -> Snapshot | None:
        """Those of the agent inside, captured again if they may have changed."""
        if agent.contents is not None and self._present is None:
            if not agent.contents.is_unchanged():
                agent.contents = self._capture(agent.parameters, agent.large)
                self._share_changes(agent.contents)
            self._staying, self._present = None, agent.contents
        return agent.contents

    def _share_changes(self, after: Snapshot) -> None:
        if self._staying is not None:
            before, others = self._staying
            for other in others:
                assert other.contents is not None
                other.contents = after if other.contents is before else merged(other.contents, before, after)

    def touch(self) -> None:
        """Code of the user runs now, and may change the contents of the agent inside."""
        self._present = None

    def snapshot(self, *others: Any) -> Snapshot:
        """The contents of the module now, and of other objects."""
        assert self.inside is not None
        contents, leave = self._contents_of(self.inside), self.inside.parameters
        if contents is None:
            return Snapshot(self.module, *others, leave=leave, large=self.inside.large)
        return Snapshot(*self.metrics, *others, leave=leave, base=contents, large=self.inside.large)

    def take_over(self) -> None:
        """Copy what the user's code has given other memory into that of the agent inside."""
        if self.inside is not None:
            for parameter, view in zip(self.inside.parameters, self.inside.views, strict=True):
                if address(parameter) != address(view):
                    view.copy_(parameter.data)
                    parameter.data = view

    def entrust(self, agent: Belongings, parameters: Sequence[nn.Parameter], views: Sequence[Tensor]) -> None:
        """Let these parameters be trained for the agent, and point at `views` while it is inside."""
        agent.parameters, agent.views = parameters, views
        if agent is self.inside:
            _point(parameters, views)

    # --- in and out

    def swap_in(self, agent: Belongings, but_contents: bool = False) -> RandomState:
        """The module is that of `agent` now; not while a graph of its parameters is alive.

        Before code of the user runs, `touch` must be called.

        Args:
            agent: who has the module next.
            but_contents: those are put in place by who calls.

        Returns:
            The random state now.
        """
        if agent is self.inside:
            if self._staying is not None:
                self._contents_of(agent)
            return self._streams.give(agent.stream)
        self.swap_out()
        assert agent.contents is not None
        if agent.contents is not self._present and not but_contents:
            agent.contents.restore()
        _point(agent.parameters, agent.views)
        self.optimizer.state = agent.optimizer_state
        if agent.scaler is not None:
            self._precision.scaler = agent.scaler
        self.inside, self._present = agent, agent.contents
        return self._streams.give(agent.stream)

    def swap_out(self) -> None:
        """Nobody is inside: the agent takes back what may have been replaced."""
        if self.inside is not None:
            self.take_over()
            self._contents_of(self.inside)
            self.inside.optimizer_state = self.optimizer.state
            self.inside = None

    def restore(self, values: State) -> None:
        """Back to the original tensors, with these values; the agent inside leaves everything else behind."""
        module_state = ModuleState(self.module)
        current = zip(module_state.keys, module_state.capture(), values, strict=True)
        known = ((self._originals.get(key, tensor), tensor, value) for key, tensor, value in current)
        originals = [original if original.shape == value.shape else tensor for original, tensor, value in known]
        overwrite(originals, values)
        module_state.activate(originals)
        self.inside = None

    def optimize(self, agents: Sequence[Belongings]) -> Iterator[int]:
        """Swap every agent in for an optimizer step; yields its index.

        The options of the parameter groups (learning rate, momentum) are shared, since schedulers set them once for
        all; an option that the step itself changes is kept per agent.
        """
        shared = [_options(group) for group in self.optimizer.param_groups]
        for index, agent in enumerate(agents):
            self.swap_in(agent)
            self.touch()
            agent.group_values += [{} for _ in shared[len(agent.group_values) :]]  # groups may have been added
            mine = [common | own for common, own in zip(shared, agent.group_values, strict=True)]
            _set_options(self.optimizer.param_groups, mine)
            yield index
            for group, old, own in zip(self.optimizer.param_groups, mine, agent.group_values, strict=True):
                own.update({name: value for name, value in _options(group).items() if _differs(value, old.get(name))})
        _set_options(self.optimizer.param_groups, shared)


def _point(parameters: Sequence[nn.Parameter], views: Sequence[Tensor]) -> None:
    for parameter, view in zip(parameters, views, strict=True):
        parameter.data = view


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
