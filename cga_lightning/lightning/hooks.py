"""The module's hooks of batches and epochs, which run once for every agent of a simulation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cga_lightning.lightning import internals
from cga_lightning.lightning.log_mean import log_mean
from cga_lightning.passes.residents import Residents
from cga_lightning.passes.snapshot import Snapshot

if TYPE_CHECKING:
    from cga_lightning.lightning.agent_strategy import AgentStrategy

_OF_BATCHES = {"on_train_batch_start": (0,), "on_train_batch_end": (0, 1), "on_before_zero_grad": ()}
"""Which of their arguments are sequences with an entry for every agent."""

_OF_EPOCHS = {"on_train_start": (), "on_train_epoch_start": (), "on_train_epoch_end": ()}
"""The same of hooks in which metrics are computed and reset: all agents find those as the first one has found them."""


class HooksInTurn:
    """Runs those that the user has written for one agent after the other, each with its own arguments.

    Args:
        strategy: whose module, optimizer and schedulers take part.
        residents: makes the agents, or returns them.
        outputs: what the last training step of every agent has returned, as Lightning gives it to hooks.
    """

    def __init__(
        self, strategy: AgentStrategy, residents: Callable[[], Residents], outputs: Callable[[], Sequence[Any]]
    ) -> None:
        self._strategy = strategy
        self._residents = residents
        self._outputs = outputs
        self._before: dict[str, Any] = {}

    def install(self) -> None:
        """Take the place of the hooks, on the module itself, until `remove`."""
        self._module = module = self._strategy.module
        for name, places in {**_OF_BATCHES, **_OF_EPOCHS}.items():
            if internals.is_overridden(module, name):
                self._before[name] = vars(module).get(name)
                object.__setattr__(module, name, self._in_turn(name, getattr(module, name), places))

    def remove(self) -> None:
        """Put the hooks back."""
        for name, own in self._before.items():
            if own is None:
                object.__delattr__(self._module, name)
            else:
                object.__setattr__(self._module, name, own)
        self._before = {}

    def _in_turn(self, name: str, hook: Callable[..., Any], places: Sequence[int]) -> Callable[..., Any]:
        def each(*arguments: Any) -> Any:
            residents, results = self._residents(), []
            common = self._common(residents if name in _OF_EPOCHS else None)
            if name == "on_train_batch_end":
                arguments = (self._outputs(), *arguments[1:])
            with log_mean(self._module) as logs:
                for index, _ in enumerate(residents.in_turn()):
                    common.restore()
                    own = [value[index] if place in places else value for place, value in enumerate(arguments)]
                    logs.next_batch([own[place] for place in places[-1:]])
                    results.append(hook(*own))
            return next((result for result in results if result is not None), None)

        return each

    def _common(self, residents: Residents | None) -> Snapshot:
        """What the agents share, so that every one starts from what the first one has found; metrics too if given."""
        strategy = self._strategy
        groups, schedulers = strategy.optimizers[0].param_groups, strategy.lr_scheduler_configs
        metrics = () if residents is None else residents.shared.metrics
        shared = (groups, [vars(config.scheduler) for config in schedulers], *metrics)
        return Snapshot(*shared, leave=self._module.parameters())
