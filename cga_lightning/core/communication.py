"""Carry what algorithms yield: between processes, or between agents of one process.

Both communicators drive the same generators (see `core.algorithm`), so an algorithm is written once.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import chain, count
from traceback import clear_frames

import torch.distributed as dist
from torch import Tensor

from cga_lightning.copy_on_write import lazily_copied
from cga_lightning.core.algorithm import Exchange, Messages, Step
from cga_lightning.core.patience import Patience
from cga_lightning.names import listed

PATIENCE = 30.0
"""Seconds of waiting after which an agent says for whom."""

_log = logging.getLogger(__name__)


class CommunicationError(RuntimeError):
    """A message of a neighbor did not arrive, or could not be delivered."""


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
        self._names: Iterator[tuple[int, str]] = iter(())
        self._number = 0
        self.pending = False

    def open_step(self, number: int, exchanges: Sequence[str]) -> None:
        """Step `number` begins, and its exchanges have these names, in order."""
        self._number = number
        self._names = enumerate(chain(exchanges, (f"exchange {i}" for i in count(len(exchanges) + 1))))

    def start(self, steps: Sequence[Step]) -> None:
        """Start one generator per agent of this process; what they send goes off as it is now."""
        self._steps = list(steps)
        self._advance([None] * len(self._steps))

    def finish(self) -> None:
        """Run them to their end.

        Raises:
            CommunicationError: when a message does not arrive.
        """
        while self.pending:
            self._advance(self._receive())

    def run(self, steps: Sequence[Step]) -> None:
        """Start one generator per agent of this process and run them to their end."""
        self.start(steps)
        self.finish()

    def _advance(self, inboxes: Sequence[Messages | None]) -> None:
        yielded = [_resume(step, inbox) for step, inbox in zip(self._steps, inboxes, strict=True)]
        self.pending = any(exchange is not None for exchange in yielded)
        if not self.pending:
            self._steps = []  # generators cannot be copied to another process
        else:
            self._place, self._name = next(self._names)
            exchanges = [Exchange.of(exchange or {}) for exchange in yielded]
            self.traffic[self._name] += sum(t.nbytes for exchange in exchanges for t in exchange.outbox.values())
            self._send(exchanges)

    @abstractmethod
    def _send(self, exchanges: list[Exchange]) -> None:
        """Start one exchange, named `_name`: what each agent of this process sends, and from whom it hears.

        It goes off as it is now, whatever its sender does with the tensors next.
        """

    @abstractmethod
    def _receive(self) -> list[Messages]:
        """Complete it: one inbox per agent of this process, with a message from each of its senders."""


class LocalCommunicator(Communicator):
    """All agents live in this process, agent i at index i."""

    def _send(self, exchanges: list[Exchange]) -> None:
        sent = {(rank, receiver) for rank, exchange in enumerate(exchanges) for receiver in exchange.outbox}
        awaited = {(sender, rank) for rank, exchange in enumerate(exchanges) for sender in exchange.senders}
        for sender, receiver in sorted(sent ^ awaited):
            sends, awaits = ("sends", "nothing") if (sender, receiver) in sent else ("does not send", "a message")
            raise CommunicationError(
                f"Agent {sender} {sends} {self._name!r} to agent {receiver} at step {self._number}, but agent "
                f"{receiver} awaits {awaits} from it. The algorithm must yield outboxes and senders that match."
            )
        self._inboxes: list[Messages] = [
            {sender: lazily_copied(exchanges[sender].outbox[rank]) for sender in exchange.senders}
            for rank, exchange in enumerate(exchanges)
        ]

    def _receive(self) -> list[Messages]:
        inboxes, self._inboxes = self._inboxes, []
        return inboxes


class ProcessGroupCommunicator(Communicator):
    """One agent per process, over the default process group of `torch.distributed` (gloo or NCCL).

    Args:
        rank: the agent of this process.
        timeout: how long to wait for a message.
    """

    def __init__(self, rank: int, timeout: timedelta) -> None:
        super().__init__()
        self.rank = rank
        self.timeout = timeout
        self._patience = Patience(PATIENCE, self._warn)
        self._works: list[dist.Work] = []
        self._buffers: dict[tuple[object, ...], Tensor] = {}

    def _send(self, exchanges: list[Exchange]) -> None:
        (exchange,) = exchanges
        outbox = exchange.outbox
        self._inbox = {rank: self._buffer((self._place, rank), like) for rank, like in exchange.expected.items()}
        operations = [dist.P2POp(dist.irecv, buffer, rank) for rank, buffer in self._inbox.items()]
        copies = {id(message): lazily_copied(message) for message in outbox.values()}  # one tensor stays one
        operations += [dist.P2POp(dist.isend, copies[id(message)], rank) for rank, message in outbox.items()]
        self._peers = [*self._inbox, *outbox]
        try:
            self._works = dist.batch_isend_irecv(operations) if operations else []
        except RuntimeError as error:
            clear_frames(error.__traceback__)  # of the works, see close()
            raise self._failure(self._peers, error) from error

    def _buffer(self, key: tuple[object, ...], like: Tensor) -> Tensor:
        """Memory for a message, the same at every step: to allocate it costs more than to copy into it."""
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape != like.shape or buffer.dtype != like.dtype:
            buffer = self._buffers[key] = like.new_empty(like.shape)
        return buffer

    def _receive(self) -> list[Messages]:
        # One work per operation in order, or one for all of them (NCCL): either way all are waited for.
        one_each = len(self._works) == len(self._peers)
        with self._patience.waiting():
            for i in range(len(self._works)):
                self._awaited = self._peers[i : i + 1] if one_each else self._peers
                try:
                    self._works[i].wait(self.timeout)  # the list alone holds it, see close()
                except RuntimeError as error:
                    raise self._failure(self._awaited, error) from error
        self._works = []
        return [self._inbox]

    def close(self) -> None:
        """Leave the group, so that the neighbors lose this agent at once and not when its process has ended."""
        self._works = []  # each would keep the connections open
        leave_group()

    def _warn(self) -> None:
        who = listed(sorted(set(self._awaited)))
        _log.warning(
            f"Agent {self.rank} has waited {PATIENCE:g} s to exchange {self._name!r} with its neighbor "
            f"{who} at step {self._number}; it gives up after {self.timeout.total_seconds():g} s."
        )

    def _failure(self, peers: list[int], error: RuntimeError) -> CommunicationError:
        who = listed(sorted(set(peers)))
        what = f"exchange {self._name!r} with its neighbor {who} at step {self._number}"
        return communication_error(self.rank, what, f"agent {who}", self.timeout, error)


def leave_group() -> None:
    """End the connections and threads of the default process group; not with NCCL, which may wait for the others here.

    To be done before the interpreter ends: a thread of gloo that frees a tensor after that aborts the process.
    """
    if dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()


def communication_error(rank: int, what: str, who: str, timeout: timedelta, error: RuntimeError) -> CommunicationError:
    """The error of an agent that could not do `what` because of `who`. It is printed at once.

    Otherwise it would be shown when the last process has ended.
    """
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    message = (
        f"Agent {rank} could not {what} (timeout {timeout.total_seconds():g} s): {reason}. Look at the output of "
        f"{who}: it has died, raised or is late. For slow agents pass DecentralizedStrategy(timeout=...)."
    )
    _log.error(message)
    return CommunicationError(message)


def _resume(step: Step, inbox: Messages | None) -> Messages | Exchange | None:
    """The next outbox of a step, or None when it has ended."""
    try:
        return next(step) if inbox is None else step.send(inbox)
    except StopIteration:
        return None
