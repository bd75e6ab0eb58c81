"""Gossip between agents before they are tested on their own or handed out; what they train with stays as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from cga_lightning.core.algorithm import Step
from cga_lightning.core.averaging import bring_together
from cga_lightning.core.communication import Communicator
from cga_lightning.lightning.swapped import Swapped
from cga_lightning.passes.module_state import State, wide_dtype
from cga_lightning.passes.residents import Residents
from cga_lightning.topology.polynomial import averaging_roots

if TYPE_CHECKING:
    from torch import nn

    from cga_lightning.lightning.agent_strategy import AgentStrategy


class Settling:
    """Rounds of gossip on copies of the agents' tensors, along the edges of the topology.

    Chebyshev rounds, or a single plain one. All floating tensors take part, float32 where they are shorter; integers
    stay the agent's own. In traffic they are "settle".

    Args:
        strategy: whose agents and topology take part.
        rounds: how many, at least 0.
        plain: whether it is a single round of the mixing matrix itself.
        steps_made: how many steps the agents have made, for messages.
        check: raises unless all agents have tensors of the same shapes. A collective.

    Raises:
        TypeError: the number of rounds is no int.
        ValueError: it is negative, or given with a plain round.
    """

    def __init__(
        self,
        strategy: AgentStrategy,
        rounds: int,
        plain: bool,
        steps_made: Callable[[], int],
        check: Callable[[], None],
    ) -> None:
        if isinstance(rounds, bool) or not isinstance(rounds, int):
            raise TypeError(f"settle must be a number of gossip rounds, an int, got {rounds!r}.")
        if rounds < 0:
            raise ValueError(f"settle must be a number of gossip rounds of at least 0, got {rounds}.")
        if rounds and plain:
            raise ValueError(
                f"eval_model='mixed' is one round of gossip, settle={rounds} are others. For the agents as they are "
                "after these, use eval_model='own'."
            )
        self._communicator: Communicator | None = None
        self._strategy = strategy
        self._rounds = rounds
        self._plain = plain
        self._steps_made = steps_made
        self._check = check
        self._validated: list[Swapped] = []

    @property
    def active(self) -> bool:
        """Whether there is a round at all."""
        return self._plain or self._rounds > 0

    def start(self, communicator: Communicator) -> None:
        """A fit begins, and this carries the messages: another than that of training, whose may be under way."""
        self._communicator = communicator

    @property
    def traffic(self) -> Counter[str]:
        """Payload bytes that the agents of this process have sent."""
        return Counter() if self._communicator is None else self._communicator.traffic

    def check(self) -> None:
        """Refuse a topology on which rounds would lead elsewhere than to the mean.

        Raises:
            ValueError: says which will do.
        """
        try:
            if self.active:
                self._strategy.topology.eigenvalues()
        except ValueError as error:
            raise ValueError(
                f"settle and eval_model='mixed' need an undirected topology such as 'ring' or 'exponential'. {error}"
            ) from None

    def settled(self, states: Sequence[State]) -> list[State]:
        """Copies of the tensors of the agents of this process after all rounds; these if there are none. A collective.

        Args:
            states: those of the agents, in the order of their ranks.
        """
        if self._communicator is None or not self.active:
            return list(states)
        self._check()
        roots = (0.0,) if self._plain else averaging_roots(self._strategy.topology, self._rounds)
        settled: list[State] = [[tensor.clone() for tensor in state] for state in states]
        self._communicator.open_step(self._steps_made(), ["settle"] * len(roots) * len(_dtypes(states[0])))
        ranks = self._strategy.local_agents
        steps = [self._bring_together(rank, state, roots) for rank, state in zip(ranks, settled, strict=True)]
        self._communicator.run(steps)
        return settled

    def _bring_together(self, rank: int, state: State, roots: Sequence[float]) -> Step:
        for dtype in _dtypes(state):
            part = [tensor for tensor in state if tensor.dtype == dtype]
            flat = torch.cat([tensor.flatten() for tensor in part]).to(wide_dtype(part[0]))
            flat = yield from bring_together(flat, rank, self._strategy.topology, roots)
            for tensor, values in zip(part, torch.split(flat, [tensor.numel() for tensor in part]), strict=True):
                tensor.copy_(values.view(tensor.shape))

    # --- in a validation of agents that take turns in one module

    def begin_validation(self, module: nn.Module, residents: Residents) -> None:
        """From now on `in_module` has the settled tensors, until `end_validation`. Nothing if it does already."""
        if self.active and not self._validated:
            for _, state in zip(residents.in_turn(), self.settled(residents.states()), strict=True):
                self._validated.append(Swapped(module, state))
                self._validated[-1].put_aside()

    @contextmanager
    def in_module(self, place: int) -> Iterator[None]:
        """Inside, the module, which holds the tensors of the agent at that place, has its settled ones."""
        for swapped in self._validated[place : place + 1]:
            swapped.come_back()
        try:
            yield
        finally:
            for swapped in self._validated[place : place + 1]:
                swapped.put_aside()

    def end_validation(self, residents: Residents) -> None:
        """What was written into buffers goes to the agents."""
        if self._validated:
            for _, swapped in zip(residents.in_turn(), self._validated, strict=True):
                swapped.come_back()
                swapped.leave()
        self._validated = []

    def drop(self) -> None:
        """The same after an exception: nothing that was written is kept."""
        self._validated = []


def _dtypes(state: State) -> list[torch.dtype]:
    """Those that take part, in an order that all agents share."""
    return sorted({tensor.dtype for tensor in state if tensor.is_floating_point()}, key=str)
