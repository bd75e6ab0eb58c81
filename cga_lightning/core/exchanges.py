"""Carry what algorithms yield, exchange by exchange; here between agents of one process.

All communicators drive the same generators (see `core.algorithm`), so an algorithm is written once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, count

from torch import Tensor

from cga_lightning.copy_on_write import lazily_copied
from cga_lightning.core.algorithm import Exchange, Messages, Step


class CommunicationError(RuntimeError):
    """A message of a neighbor did not arrive, or could not be delivered.

    Attributes:
        peers: the agents that were waited for; none where all others were.
    """

    def __init__(self, message: str, peers: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.peers = list(peers)


class Communicator(ABC):
    """Runs the steps of the agents of this process, exchange by exchange.

    `open_step` names the exchanges to come. `start` runs the generators up to their first messages and sends these off;
    `finish` runs them to the end. A message that arrives is in memory that only its receiver uses.

    Attributes:
        traffic: payload bytes that the agents of this process have sent, by name of the exchange.
        pending: whether an exchange has begun and is not complete.
    """

    def __init__(self) -> None:
        self.traffic: Counter[str] = Counter()
        self._steps: list[Step] = []
        self._inboxes: list[Messages] = []
        self._names: Iterator[tuple[int, str]] = iter(())
        self._number = 0
        self.pending = False

    def open_step(self, number: int, exchanges: Sequence[str]) -> None:
        """Step `number` begins, and its exchanges have these names, in order."""
        self._number = number
        self._names = enumerate(chain(exchanges, (f"exchange {i}" for i in count(len(exchanges) + 1))))

    def start(self, steps: Sequence[Step]) -> None:
        """Start one generator per agent of this process; what they send goes off as it is now.

        Nothing is sent before all of it has been computed, which may raise.
        """
        self._steps = list(steps)
        exchanges = self._resumed([None] * len(self._steps))
        self._begin([exchange.computed() for exchange in exchanges])

    def finish(self) -> None:
        """Run them to their end.

        Raises:
            CommunicationError: when a message does not arrive.
        """
        while self.pending:
            self._begin(self._resumed(self._inboxes))
        self._complete()

    def run(self, steps: Sequence[Step]) -> None:
        """Start one generator per agent of this process and run them to their end."""
        self.start(steps)
        self.finish()

    def _resumed(self, inboxes: Sequence[Messages | None]) -> list[Exchange]:
        """What the generators yield next."""
        yielded = [_resume(step, inbox) for step, inbox in zip(self._steps, inboxes, strict=True)]
        self.pending = any(exchange is not None for exchange in yielded)
        return [Exchange.of(exchange or {}) for exchange in yielded]

    def _begin(self, exchanges: list[Exchange]) -> None:
        if self.pending:
            self._place, self._name = next(self._names)
            self._inboxes = self._carry(exchanges)
        else:
            self._steps, self._inboxes = [], []  # generators cannot be copied to another process

    def _counted(self, message: Tensor) -> Tensor:
        """A message that is sent now."""
        self.traffic[self._name] += message.nbytes
        return message

    @abstractmethod
    def _carry(self, exchanges: list[Exchange]) -> list[Messages]:
        """One exchange, named `_name`: what each agent of this process sends, and from whom it hears.

        It goes off as it is now, whatever its sender does with the tensors next.

        Returns:
            One inbox per agent of this process, with a message from each of its senders, which may be waited for when
            it is asked for.
        """

    @abstractmethod
    def _complete(self) -> None:
        """Wait for all that is still under way."""


class LocalCommunicator(Communicator):
    """All agents live in this process, agent i at index i."""

    def _carry(self, exchanges: list[Exchange]) -> list[Messages]:
        sent = {(rank, receiver) for rank, exchange in enumerate(exchanges) for receiver in exchange.outbox}
        awaited = {(sender, rank) for rank, exchange in enumerate(exchanges) for sender in exchange.senders}
        for sender, receiver in sorted(sent ^ awaited):
            sends, awaits = ("sends", "nothing") if (sender, receiver) in sent else ("does not send", "a message")
            raise CommunicationError(
                f"Agent {sender} {sends} {self._name!r} to agent {receiver} at step {self._number}, but agent "
                f"{receiver} awaits {awaits} from it. The algorithm must yield outboxes and senders that match."
            )
        outboxes = [{r: self._counted(message) for r, message in each.outbox.items()} for each in exchanges]
        return [
            {sender: lazily_copied(outboxes[sender][rank]) for sender in exchange.senders}
            for rank, exchange in enumerate(exchanges)
        ]

    def _complete(self) -> None:
        pass


def _resume(step: Step, inbox: Messages | None) -> Messages | Exchange | None:
    """The next outbox of a step, or None when it has ended."""
    try:
        return next(step) if inbox is None else step.send(inbox)
    except StopIteration:
        return None
