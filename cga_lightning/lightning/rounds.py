"""The epochs of all agents, round by round, also where only the loaders themselves show how long they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any, Literal, NamedTuple

from cga_lightning.names import listed

Uneven = Literal["cycle", "min", "error"]


def sized_length(loader: object) -> int | None:
    """The number of batches of `loader`, or None if it does not know."""
    try:
        length: int = len(loader)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None
    return length


class Report(NamedTuple):
    """How far a loader is.

    Attributes:
        ready: whether it has the batch of this round.
        ended: whether it has ended in this epoch, and may have started again.
        wrong: what is wrong with it; None if nothing is.
    """

    ready: bool
    ended: bool
    wrong: str | None = None


_NOTHING: Any = object()


class Source:
    """The train loader of one agent, which is started again in an epoch as often as it takes.

    Args:
        loader: serves as many batches as its length says each time it is started, or any number if it has none.
        drawing: inside this context a batch is drawn.
    """

    def __init__(
        self, loader: Iterable[Any], drawing: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        self.loader: Any = loader
        self._drawing = drawing
        self.length = sized_length(loader)
        self._resumes = False
        self._iterator: Iterator[Any] | None = None
        self._saved: tuple[Any, int] = None, 0
        self.reset()

    def go_on(self, state: Any, served: int) -> None:
        """In the next epoch, go on from the state that the loader had after it had served so many batches of it."""
        self._saved = state, served

    def begin(self, length: int | None) -> int:
        """An epoch of so many batches begins; returns how many of them were served already, see `go_on`.

        The state of a loader that was cut off at the end of an epoch is not that of the beginning of the next.
        """
        self.reset()
        (state, served), self._saved = self._saved, (None, 0)
        if state is not None and (served or not length or length % (self.length or 1) == 0):
            self.load_state_dict(state)
        with self._drawing():
            self._start()  # now, as a plain loader does: it may draw random numbers
        return served

    def _start(self) -> Iterator[Any]:
        self._iterator, self._served = iter(self.loader), 0
        return self._iterator

    def load_state_dict(self, state: Any) -> None:
        """For a loader that can: when it is started next, it serves the rest of an epoch only."""
        self.loader.load_state_dict(state)
        self._resumes = True

    def reset(self) -> None:
        """Between epochs; workers of the loader end."""
        self._iterator = None
        self._batch = _NOTHING
        self._served = 0
        self._ended = False

    @property
    def ready(self) -> bool:
        """Whether it has drawn a batch that nobody has taken."""
        return self._batch is not _NOTHING

    def draw(self) -> Report:
        """Have the batch of this round ready, unless the loader ends here; it starts again the next time."""
        if self.ready:
            return Report(True, self._ended)
        with self._drawing():
            iterator = self._start() if self._iterator is None else self._iterator
            batch = _NOTHING if self._served == self.length else next(iterator, _NOTHING)
        if batch is _NOTHING:
            wrong, self._resumes = None if self._resumes else self._wrong(), False
            self._iterator, self._ended = None, True
            return Report(False, True, wrong)
        self._batch = batch
        self._served += 1
        return Report(True, self._ended)

    def _wrong(self) -> str | None:
        if self.length is not None and self._served < self.length:
            return f"its length promises {self.length} batches each time it is started, but it gave {self._served}"
        return None if self._served else "it has no length, and gave no batch when it was started"

    def take(self) -> Any:
        """Hand out the batch of this round."""
        batch, self._batch = self._batch, _NOTHING
        return batch


class CommonEpoch:
    """The epochs of all agents, in rounds of one batch for each: an epoch ends in the same round for all of them.

    Args:
        sources: the loaders of the agents of this process.
        length: rounds of an epoch; None: until the first loader ends ("min") or the last one ("cycle"), or all at once
            ("error").
        uneven: see `agreed_length`.
        gather: the reports of every process, given those of this one. A collective, unless all lengths are certain.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        length: int | None,
        uneven: Uneven,
        gather: Callable[[list[Report]], list[list[Report]]],
    ) -> None:
        self.length = length
        self._sources = sources
        self._uneven = uneven
        self._gather = gather
        self._started: set[int] = set()
        self._rounds = 0
        self._epochs = 0
        self._over = True

    def batches(self, source: Source) -> Iterator[Any]:
        """Those of one agent in this epoch. A new one begins when those of all agents of this process are asked for."""
        self._started.add(id(source))
        if len(self._started) == len(self._sources):
            self._started.clear()
            self._rounds, self._over = max(each.begin(self.length) for each in self._sources), False
            self._epochs += 1
        return self._served_to(source)

    def _served_to(self, source: Source) -> Iterator[Any]:
        epoch = self._epochs
        try:
            while self._has_batch_for(source):
                yield source.take()
        finally:
            if epoch == self._epochs:  # else the next one has begun before this generator was given up
                source.reset()

    def _has_batch_for(self, source: Source) -> bool:
        if not (source.ready or self._over):
            self._next_round()
        return not self._over

    def _next_round(self) -> None:
        """Everybody draws; loaders that have ended draw again, from their start.

        Raises:
            RuntimeError: on all agents, names those whose loader serves less than it has promised.
            ValueError: the loaders end in different rounds, which uneven="error" forbids.
        """
        self._over = self._rounds == self.length
        ready = False
        while not (ready or self._over):
            reports = list(chain.from_iterable(self._gather([source.draw() for source in self._sources])))
            self._check(reports)
            ready = all(report.ready for report in reports)
            self._over = self.length is None and self._ends(reports)
        self._rounds += 1

    def _check(self, reports: Sequence[Report]) -> None:
        expected = "batches" if self.length is None else f"of the {self.length} batches"
        wrong = [
            f"The train loader of agent {rank} ran dry after {self._rounds} {expected} of this epoch: {report.wrong}."
            for rank, report in enumerate(reports)
            if report.wrong is not None
        ]
        if wrong:
            raise RuntimeError(
                f"{' '.join(wrong)} Every iterator must start anew, and len() be the number of batches that come; or "
                "leave it out and set Trainer(max_steps=...) or Trainer(limit_train_batches=...)."
            )

    def _ends(self, reports: Sequence[Report]) -> bool:
        if self._uneven == "cycle":
            return all(report.ended for report in reports)
        ended = [rank for rank, report in enumerate(reports) if report.ended]
        if self._uneven == "error" and 0 < len(ended) < len(reports):
            raise ValueError(
                f"The train loader of agent {listed(ended)} has {self._rounds} batches, others have more, but "
                'uneven="error" asks for equal lengths. Use uneven="cycle" to repeat the shorter ones or uneven="min" '
                "to cut the longer ones."
            )
        return bool(ended)
