"""What comes next in a fit is the same for all agents, or none of them would get an answer from the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import TYPE_CHECKING

from cga_lightning.core.exchanges import CommunicationError
from cga_lightning.lightning import internals
from cga_lightning.lightning.notices import Notices
from cga_lightning.lightning.peers import Peers
from cga_lightning.lightning.signals import Signal
from cga_lightning.names import listed

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

LAST_WORDS = 1.0
"""Seconds in which neighbors that have left may have said why."""


class Next(IntEnum):
    """What an agent goes on with."""

    BATCH = 1
    LOADERS = 2
    VALIDATION = 3
    EPOCH_END = 4
    TRAIN_END = 5
    NOTHING = 6


_WHAT = {
    Next.BATCH: "the next batch",
    Next.LOADERS: "new data loaders",
    Next.VALIDATION: "a validation",
    Next.EPOCH_END: "the end of the epoch",
    Next.TRAIN_END: "the end of training",
}
_STOPPING, _SIGNALED = 8, 16


class Transitions:
    """Compares what agents go on with: with the neighbors at every step, and with all where all come together.

    Along with that goes what shall happen to all of them at one step.

    Args:
        peers: the processes of the run.
        step: the number of the step that this process is at.
        amid_step: whether it has seen some of the batches of that step.

    Attributes:
        terminate: SIGTERM, on which the run ends.
        requeue: SLURM's signal before the time limit.
    """

    def __init__(self, peers: Peers, step: Callable[[], int], amid_step: Callable[[], bool]) -> None:
        self._peers = peers
        self._step = step
        self._amid_step = amid_step
        self._notices: Notices | None = None
        self._difference: Mapping[int, int] = {}  # by rank, what the agents go on with that do not agree
        self.terminate = Signal()
        self.requeue = Signal()

    def begin(self, notices: Notices | None) -> None:
        """A fit begins.

        Args:
            notices: to and from the neighbors; None where there is no other process.
        """
        self._notices = notices
        self.terminate = Signal()

    @property
    def _signals(self) -> tuple[Signal, Signal]:
        return self.terminate, self.requeue

    # --- at every step

    def next_batch(self, trainer: Trainer) -> None:
        """Before a batch: end the run if this is the step at which all do.

        Raises:
            SIGTERMException: on all agents at the same step.
        """
        if not self._amid_step() and self.due(self.terminate):
            internals.terminate(trainer)

    def due(self, signal: Signal) -> bool:
        """Whether this is where all agents act on a signal; between two steps."""
        if self._notices is None:
            signal.take_note(self._step(), hops=0)
        return signal.due(self._step())

    def begin_step(self, trainer: Trainer) -> None:
        """Tell the neighbors that a step begins here."""
        self._take_note()
        self._tell(self._number(Next.BATCH, trainer))

    def compare(self, trainer: Trainer) -> None:
        """Before the neighbors' messages are waited for: whether a step begins there too.

        Raises:
            RuntimeError: see `agree`.
        """
        self._hear(self._number(Next.BATCH, trainer))

    def _take_note(self) -> None:
        for signal in self._signals:
            signal.take_note(self._step(), 0 if self._notices is None else self._notices.hops)

    def _tell(self, number: int) -> None:
        if self._notices is not None:
            known = [value for signal in self._signals for value in (signal.number, signal.step)]
            pairs = [value for pair in list(self._difference.items())[:2] for value in pair]
            numbers = [number, self._step(), *known, *pairs]
            self._notices.tell(numbers + [0] * (Notices.COUNT - len(numbers)), self._step())

    def _hear(self, number: int) -> None:
        if self._notices is None:
            return
        heard = self._notices.hear()
        self._look_for_an_end(heard)
        for numbers in heard.values():
            for signal, place in zip(self._signals, (2, 4), strict=True):
                signal.hear(*numbers[place : place + 2])
        self._check({self._notices.rank: number} | {rank: numbers[0] for rank, numbers in heard.items()}, self._step())

    # --- where all come together

    def agree(self, following: Next, trainer: Trainer) -> None:
        """All go on with the same. A collective, and the first one of each transition.

        Raises:
            RuntimeError: names the agents that go on with something else, because they alone shall stop for instance.
            SIGTERMException: on all agents, where one of them has got the signal and there is training left.
        """
        if self._peers.left:
            return
        self._take_note()
        number = self._number(following, trainer)
        self._tell(number)
        try:
            numbers = self._peers.gather(number, "agreement on what comes next", lambda: self._hear(number))
        except CommunicationError:
            self.explain()
            raise
        self._check(dict(enumerate(numbers)), self._step())
        if following != Next.TRAIN_END and any(number & _SIGNALED for number in numbers):
            internals.terminate(trainer)

    def _number(self, following: Next, trainer: Trainer) -> int:
        return following + _STOPPING * trainer.should_stop + _SIGNALED * self.terminate.pending

    # --- where they differ

    def explain(self) -> None:
        """A neighbor has left: raise what it has left with, if it has said so.

        Raises:
            RuntimeError: see `agree`.
        """
        if self._notices is not None:
            self._look_for_an_end(self._notices.last_words(LAST_WORDS))

    def _look_for_an_end(self, heard: Mapping[int, list[int]]) -> None:
        for numbers in heard.values():
            if numbers[0] % _STOPPING == Next.NOTHING:
                (first, a), (second, b) = zip(numbers[6:10:2], numbers[7:10:2], strict=True)
                self._check({first: a, second: b}, numbers[1])

    def _check(self, numbers: Mapping[int, int], step: int) -> None:
        nexts = {rank: Next(number % _STOPPING) for rank, number in sorted(numbers.items())}
        if len({*nexts.values()}) == 1:
            return
        stopping = [rank for rank in nexts if numbers[rank] & _STOPPING]
        first = next(iter(nexts))
        other = next(rank for rank in nexts if nexts[rank] != nexts[first])
        self._difference = {first: numbers[first], other: numbers[other]}
        self._tell(Next.NOTHING)
        if self._notices is not None:
            self._notices.flush()
        raise RuntimeError(_difference(nexts, stopping, step))


def _difference(nexts: Mapping[int, Next], stopping: list[int], step: int) -> str:
    ranks = {one: [rank for rank, n in nexts.items() if n is one] for one in nexts.values()}
    found = [f"{_WHAT[one]} on agent {listed(ranks[one])}" for one in ranks]
    where = f"After step {step} comes {', but '.join(found)}"
    if 0 < len(stopping) < len(nexts):
        return (
            f"{where}: trainer.should_stop was set on agent {listed(stopping)} alone. Agents stop together: let "
            "EarlyStopping decide, or trainer.strategy.reduce_boolean_decision(...), called on every agent."
        )
    return f"{where}. Give all agents the same Trainer settings, and the same hooks and callbacks."
