"""Where the train loaders are in their data: saved for every agent, so that each goes on with its own samples."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from cga_lightning.lightning.internals import train_loaders
from cga_lightning.lightning.loaders import AgreedLoader, is_stateful

if TYPE_CHECKING:
    from cga_lightning.lightning.agent_strategy import AgentStrategy

_log = logging.getLogger(__name__)

Saved = dict[str, Any]
"""Of one loader: "loader", its state_dict, and "generator", the state of the one it draws from; None for neither."""


class LoaderStates:
    """Saves the states of the train loaders of this process, and lets the loaders of another run go on from there.

    Args:
        strategy: whose Trainer has the loaders.
    """

    def __init__(self, strategy: AgentStrategy) -> None:
        self._strategy = strategy
        self._saved: deque[Saved] = deque()
        self._drawn_from: list[tuple[torch.Generator, Tensor]] = []

    @property
    def batches_done(self) -> int:
        """How many batches of an epoch had been drawn when the checkpoint was saved; 0 at its end."""
        progress: Any = self._strategy.module.trainer.fit_loop.epoch_loop.batch_progress
        return 0 if progress.is_last_batch else int(progress.current.processed)

    def of_agents(self) -> list[list[Saved]]:
        """One list per agent of this process, with all of its loaders."""
        loaders, agents = train_loaders(self._strategy.module.trainer), len(self._strategy.local_agents)
        own: Any = [loaders] * agents if agents == 1 or loaders is None else loaders
        return [[_state_of(loader) for loader in tree_leaves(mine)] for mine in own]

    def forget(self) -> None:
        """Another checkpoint is loaded."""
        self._saved.clear()

    def load(self, rank: int, saved: Sequence[Saved]) -> None:
        """Those of the next agent of this process; none in older checkpoints."""
        self._saved += saved
        if self.batches_done and not (saved and all(state["loader"] for state in saved)):
            _log.warning(
                f"Agent {rank} goes on after {self.batches_done} batches of an epoch, but its train loader has no "
                "state: the rest of this epoch is drawn from all of its data. Save at the ends of epochs, or use a "
                "loader with state_dict() and load_state_dict(), such as torchdata's StatefulDataLoader."
            )

    def continued(self, loader: Any) -> Any:
        """The next train loader of this process, where it was when the checkpoint was saved."""
        if not self._saved:
            return loader
        saved = self._saved.popleft()
        state = saved["loader"] if is_stateful(loader) else None
        if isinstance(loader, AgreedLoader):
            loader.go_on(state, self.batches_done)
        elif state is not None:
            loader.load_state_dict(state)
        generator = _generator_of(loader)
        if generator is not None and saved["generator"] is not None:
            generator.set_state(saved["generator"].cpu())
            self._drawn_from.append((generator, saved["generator"].cpu()))
        return loader

    def rewind(self) -> None:
        """Amid an epoch iterators have drawn from their generators already: what they draw anew does not count."""
        for generator, state in self._drawn_from:
            if self.batches_done:
                generator.set_state(state)
        self._drawn_from.clear()


def _state_of(loader: Any) -> Saved:
    generator = _generator_of(loader)
    return {
        "loader": loader.state_dict() if is_stateful(loader) else None,
        "generator": None if generator is None else generator.get_state(),
    }


def _generator_of(loader: Any) -> torch.Generator | None:
    """The generator that the user has given to a loader, from which it draws the order of its next epoch."""
    generator = getattr(loader, "generator", None)
    return generator if isinstance(generator, torch.Generator) else None
