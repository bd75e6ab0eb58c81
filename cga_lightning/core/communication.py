"""Carry what agents in different processes send each other, over `torch.distributed`."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import count
from traceback import clear_frames
from typing import NamedTuple

import torch.distributed as dist
from torch import Tensor

from cga_lightning.copy_on_write import lazily_copied
from cga_lightning.core.algorithm import Exchange, LazyMessages, Messages
from cga_lightning.core.exchanges import CommunicationError, Communicator, LocalCommunicator
from cga_lightning.core.patience import Patience
from cga_lightning.names import listed

__all__ = [
    "PATIENCE",
    "CommunicationError",
    "Communicator",
    "LocalCommunicator",
    "ProcessGroupCommunicator",
    "Wire",
    "communication_error",
    "leave_group",
]

PATIENCE = 30.0
"""Seconds of waiting after which an agent says for whom."""
SLOW = 0.002
"""Seconds that it may take until what was sent is on its way, before an agent does not wait for that any more."""
PLACES = 8
"""Of messages that are none of an algorithm: their places are below this number."""

MOST_PLACES = 2048
"""Of exchanges in one step."""

_log = logging.getLogger(__name__)
_Group = dist.ProcessGroup | None


class Arrival(NamedTuple):
    """A message that is awaited.

    Attributes:
        message: memory for it.
        works: the operations to wait for, by their numbers.
        peers: from whom they come.
        name: of the exchange.
    """

    message: Tensor
    works: Sequence[int]
    peers: Sequence[int]
    name: str


class Operations:
    """Operations under way. Nothing else holds them: a work that is alive keeps connections open, see `clear`."""

    def __init__(self) -> None:
        self._works: dict[int, dist.Work] = {}
        self._numbers = count()

    def add(self, work: dist.Work) -> int:
        """Keep it; returns its number."""
        number = next(self._numbers)
        self._works[number] = work
        return number

    def wait(self, number: int, timeout: timedelta) -> None:
        """Wait for it, unless that was done before.

        Raises:
            RuntimeError: it has failed.
        """
        if number in self._works:
            self._works[number].wait(timeout)
            del self._works[number]

    def drop(self, number: int) -> None:
        """Do not wait for it any more."""
        self._works.pop(number, None)

    def clear(self) -> None:
        """Let go of all of them."""
        self._works.clear()


class Address:
    """Tags of the messages along one way of one edge in one place: another one whenever their shape or dtype changes.

    Both ends see the same messages, so both have the same tag; what is awaited in vain is never taken for another.

    Args:
        base: the first tag.
    """

    GENERATIONS = 512

    def __init__(self, base: int) -> None:
        self._base = base
        self._generation = -1
        self._kind: object = None

    def tag(self, message: Tensor) -> int:
        """That of a message of this shape and dtype, and whether it is a new one."""
        kind = (message.shape, message.dtype)
        if kind != self._kind:
            self._kind, self._generation = kind, (self._generation + 1) % self.GENERATIONS
        return self._base + self._generation


class Mailbox:
    """Messages of one process in one place of every step, in their order.

    gloo sends a message at once if its receive was posted before, and otherwise asks first, which takes a round trip.
    So when one is taken, the receive of the next is posted, into the other of two buffers.

    Args:
        operations: keeps the receives.
        sender: whose messages.
        address: of these.
        group: which it uses.
    """

    def __init__(self, operations: Operations, sender: int, address: Address, group: _Group) -> None:
        self._operations = operations
        self._sender = sender
        self._address = address
        self._group = group
        self._tag = -1
        self._posted: list[tuple[int, Tensor]] = []
        self._spare: Tensor | None = None

    def take(self, like: Tensor) -> tuple[int, Tensor]:
        """The number of the next receive, and its memory, which is free again when the one after it is taken."""
        tag = self._address.tag(like)
        if tag != self._tag:
            for number, _ in self._posted:
                self._operations.drop(number)
            self._tag, self._posted, self._spare = tag, [], like.new_empty(like.shape)
            self._post(like.new_empty(like.shape))
        taken = self._posted.pop()
        assert self._spare is not None
        self._post(self._spare)
        self._spare = taken[1]
        return taken

    def take_one(self, like: Tensor) -> tuple[int, Tensor]:
        """The same in memory of its own, and nothing is posted for the one after it."""
        self._tag = self._address.tag(like)
        self._post(like.new_empty(like.shape))
        return self._posted.pop()

    def _post(self, buffer: Tensor) -> None:
        work = dist.irecv(buffer, self._sender, group=self._group, tag=self._tag)
        self._posted.append((self._operations.add(_started(work)), buffer))


class Wire(ABC):
    """Messages of this process to others and back, with errors that say where.

    Args:
        rank: the agent of this process.
        timeout: how long to wait for a message.
        number: different from that of every other wire of the same process group, and the same at all of its ends.

    Attributes:
        step: the number of the step that this agent is at, for the reader of an error.
    """

    def __init__(self, rank: int, timeout: timedelta, number: int = 0) -> None:
        self.rank = rank
        self.timeout = timeout
        self.step = 0
        self._number = number
        self._operations = Operations()
        self._awaited: tuple[Sequence[int], str] = (), ""
        self._patience = Patience(PATIENCE, self._warn)
        self._arrivals: list[Arrival] = []
        self._sends: list[tuple[int, Arrival]] = []
        self._link_is_slow = False

    @abstractmethod
    def carry(self, place: int, name: str, exchange: Exchange, sent: Callable[[Tensor], Tensor]) -> Messages:
        """Send an outbox, each message as soon as it is computed.

        Args:
            place: of this exchange in a step, the same on all agents.
            name: of this exchange.
            exchange: what goes out, and from whom messages come.
            sent: called with every message.

        Returns:
            The inbox, where a message is waited for when it is asked for.
        """

    def wait(self, arrival: Arrival) -> Tensor:
        """Wait for a message.

        Raises:
            RuntimeError: that of `torch.distributed`.
        """
        self._awaited = arrival.peers, arrival.name
        with self._patience.waiting():
            for number in arrival.works:
                self._operations.wait(number, self.timeout)
        return arrival.message

    def receive(self, arrival: Arrival) -> Tensor:
        """Wait for a message.

        Raises:
            CommunicationError: it does not arrive; names who is waited for.
        """
        try:
            return self.wait(arrival)
        except RuntimeError as error:
            raise self.failure(arrival.peers, arrival.name, error) from error

    def complete(self) -> None:
        """Wait for all messages that were not waited for, and for what was sent if it takes no time.

        On a slow link that takes until the last byte but what the system buffers has arrived: then this step does not
        wait for it, but the next one does.
        """
        arrivals, self._arrivals = self._arrivals, []
        for arrival in arrivals:
            self.receive(arrival)
        if self._link_is_slow:
            self.complete_sends(before=self.step)
        else:
            start = time.monotonic()
            self.complete_sends()
            self._link_is_slow = time.monotonic() - start > SLOW

    def complete_sends(self, before: int | None = None) -> None:
        """Wait until what was sent is on its way, and its memory free.

        Args:
            before: only what was sent in steps before this one.
        """
        due = [send for step, send in self._sends if before is None or step < before]
        self._sends = [(step, send) for step, send in self._sends if before is not None and step >= before]
        for send in due:
            self.receive(send)

    def close(self) -> None:
        """Let go of all operations, which would keep connections open."""
        self._arrivals, self._sends = [], []
        self._operations.clear()

    def failure(self, peers: Sequence[int], name: str, error: RuntimeError) -> CommunicationError:
        """The error of an exchange of that name."""
        who = listed(sorted(set(peers)))
        what = f"exchange {name!r} with its neighbor {who} at step {self.step}"
        return communication_error(self.rank, what, f"agent {who}", self.timeout, error, peers)

    def _warn(self) -> None:
        peers, name = self._awaited
        _log.warning(
            f"Agent {self.rank} has waited {self._patience.seconds:g} s to exchange {name!r} with its neighbor "
            f"{listed(sorted(set(peers)))} at step {self.step}; it gives up after {self.timeout.total_seconds():g} s."
        )

    def _awaits(self, arrival: Arrival) -> Arrival:
        self._arrivals.append(arrival)
        return arrival


class GlooWire(Wire):
    """Tensors of the CPU, whose receives are posted ahead.

    Args:
        rank, timeout, number: see `Wire`.
        group: of gloo; the default process group if None.
    """

    def __init__(self, rank: int, timeout: timedelta, number: int = 0, group: _Group = None) -> None:
        super().__init__(rank, timeout, number)
        self.group = group
        self._mailboxes: dict[tuple[int, int], Mailbox] = {}
        self._outlets: dict[tuple[int, int], Address] = {}

    def carry(self, place: int, name: str, exchange: Exchange, sent: Callable[[Tensor], Tensor]) -> Messages:
        """All receives are posted first."""
        inbox = {sender: self.expect(sender, place, name, like) for sender, like in exchange.expected.items()}
        copies: dict[int, Tensor] = {}  # one tensor stays one
        for rank, message in exchange.outbox.items():
            if id(message) not in copies:
                copies[id(message)] = lazily_copied(message)
            self.send(rank, place, name, copies[id(sent(message))])
        return LazyMessages(inbox, lambda rank: self.receive(inbox[rank]))

    def expect(self, sender: int, place: int, name: str, like: Tensor, *, ahead: bool = True) -> Arrival:
        """The next message of `sender` in that place, of the shape and dtype of `like`.

        Args:
            sender: whose message.
            place: of a message.
            name: of the exchange.
            like: a tensor like the message.
            ahead: whether to post the receive of the one after it too; the same each time in one place.
        """
        key = sender, place
        if key not in self._mailboxes:
            self._mailboxes[key] = Mailbox(self._operations, sender, Address(self._tag(place)), self.group)
        try:
            number, buffer = self._mailboxes[key].take(like) if ahead else self._mailboxes[key].take_one(like)
        except RuntimeError as error:
            raise self.failure([sender], name, error) from error
        return self._awaits(Arrival(buffer, [number], [sender], name))

    def send(self, receiver: int, place: int, name: str, message: Tensor) -> None:
        """Start to send a message, which nobody must change before `complete`."""
        key = receiver, place
        if key not in self._outlets:
            self._outlets[key] = Address(self._tag(place))
        try:
            work = dist.isend(message, receiver, group=self.group, tag=self._outlets[key].tag(message))
            number = self._operations.add(_started(work))
        except RuntimeError as error:
            clear_frames(error.__traceback__)
            raise self.failure([receiver], name, error) from error
        self._sends.append((self.step, Arrival(message, [number], [receiver], name)))

    def _tag(self, place: int) -> int:
        return (self._number * MOST_PLACES + place) * Address.GENERATIONS % 2**31

    def close(self) -> None:
        """Let go of all operations and of the memory for messages."""
        super().close()
        self._mailboxes = {}


class GroupedWire(Wire):
    """Tensors of a device (NCCL), whose operations run in the order in which they were started.

    What comes and goes along one edge is one group. Messages that are computed one by one go edge by edge in one order
    for all agents, so that no two of them wait for each other.
    """

    def __init__(self, rank: int, timeout: timedelta, number: int = 0) -> None:
        super().__init__(rank, timeout, number)
        self._buffers: dict[tuple[int, int], Tensor] = {}

    def carry(self, place: int, name: str, exchange: Exchange, sent: Callable[[Tensor], Tensor]) -> Messages:
        """All in one group, or one group for every edge."""
        outbox, senders, _ = exchange
        peers = sorted({*outbox, *senders}, key=lambda peer: (min(peer, self.rank), max(peer, self.rank)))
        groups = [[peer] for peer in peers] if isinstance(outbox, LazyMessages) else [peers] if peers else []
        inbox: dict[int, Arrival] = {}
        for group in groups:
            inbox |= self._start(group, place, name, exchange, sent)
        return LazyMessages(senders, lambda rank: self.receive(inbox[rank]))

    def _start(
        self, group: list[int], place: int, name: str, exchange: Exchange, sent: Callable[[Tensor], Tensor]
    ) -> dict[int, Arrival]:
        expected = exchange.expected
        buffers = {peer: self._buffer((place, peer), expected[peer]) for peer in group if peer in expected}
        messages = {peer: lazily_copied(sent(exchange.outbox[peer])) for peer in group if peer in exchange.outbox}
        operations = [dist.P2POp(dist.irecv, buffer, peer) for peer, buffer in buffers.items()]
        operations += [dist.P2POp(dist.isend, message, peer) for peer, message in messages.items()]
        try:
            works = [self._operations.add(work) for work in dist.batch_isend_irecv(operations)]
        except RuntimeError as error:
            clear_frames(error.__traceback__)
            raise self.failure(group, name, error) from error
        self._sends += [(self.step, Arrival(message, works, group, name)) for message in messages.values()]
        return {peer: self._awaits(Arrival(buffer, works, group, name)) for peer, buffer in buffers.items()}

    def _buffer(self, key: tuple[int, int], like: Tensor) -> Tensor:
        """Memory for a message, the same at every step: to allocate it costs more than to copy into it."""
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape != like.shape or buffer.dtype != like.dtype:
            buffer = self._buffers[key] = like.new_empty(like.shape)
        return buffer


class ProcessGroupCommunicator(Communicator):
    """One agent per process, over the default process group of `torch.distributed` (gloo or NCCL).

    Args:
        wire: carries the messages.
    """

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._wire = wire

    def open_step(self, number: int, exchanges: Sequence[str]) -> None:
        """Step `number` begins, and its exchanges have these names, in order."""
        super().open_step(number, exchanges)
        self._wire.step = number

    def _carry(self, exchanges: list[Exchange]) -> list[Messages]:
        (exchange,) = exchanges
        return [self._wire.carry(PLACES + self._place, self._name, exchange, self._counted)]

    def _complete(self) -> None:
        self._wire.complete()

    def close(self) -> None:
        """Leave the group, so that the neighbors lose this agent at once and not when its process has ended."""
        self._wire.close()
        leave_group()


def _started(work: dist.Work | None) -> dist.Work:
    assert work is not None, "only members of the group send and receive"
    return work


def leave_group() -> None:
    """End the connections and threads of the default process group; not with NCCL, which may wait for the others here.

    To be done before the interpreter ends: a thread of gloo that frees a tensor after that aborts the process.
    """
    if dist.is_initialized() and dist.get_backend() == "gloo":
        dist.destroy_process_group()


def communication_error(
    rank: int, what: str, who: str, timeout: timedelta, error: RuntimeError, peers: Sequence[int] = ()
) -> CommunicationError:
    """The error of an agent that could not do `what` because of `who`. It is printed at once.

    Otherwise it would be shown when the last process has ended.
    """
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    message = (
        f"Agent {rank} could not {what} (timeout {timeout.total_seconds():g} s): {reason}. Look at the output of "
        f"{who}: it has died, raised or is late. For slow agents pass DecentralizedStrategy(timeout=...)."
    )
    _log.error(message)
    return CommunicationError(message, peers)
