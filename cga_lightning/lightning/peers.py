"""The processes of a run: what they tell each other beside the messages of the algorithm."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from cga_lightning.core.communication import Arrival, CommunicationError, GlooWire, communication_error
from cga_lightning.lightning.notices import Notices
from cga_lightning.names import listed
from cga_lightning.passes.module_state import State, is_averaged, mean_state, mean_tensor, wide_dtype
from cga_lightning.topology import Topology


def nothing() -> None:
    """Do nothing."""


class Peers(Protocol):
    """All processes of a run, this one included.

    Attributes:
        traffic: payload bytes that this process has sent, by name of the collective.
    """

    traffic: Counter[str]

    @property
    def rank(self) -> int:
        """Of this process."""

    @property
    def left(self) -> bool:
        """Whether an exception has stopped this process, so that the others do not answer."""

    def collective(self, name: str) -> AbstractContextManager[None]:
        """Inside, a collective of this name fails with an error that says where."""

    def gather(self, value: Any, name: str = "gather", meanwhile: Callable[[], None] = nothing) -> list[Any]:
        """One value of every process, in the order of their ranks. A collective of this name.

        Args:
            value: of this process.
            name: of the collective.
            meanwhile: called once the own value is on its way.
        """

    def broadcast(self, value: Any, source: int = 0) -> Any:
        """The value of process `source`. A collective."""

    def mean(self, states: Sequence[State]) -> State:
        """The mean over all agents, see `mean_state`, of which this process has these. A collective."""

    def notices(self, topology: Topology) -> Notices | None:
        """What this process tells its neighbors at every step; None in a run of one process."""


class OneProcess:
    """A run in a single process has nobody to ask."""

    left = False
    rank = 0

    def __init__(self) -> None:
        self.traffic: Counter[str] = Counter()

    def collective(self, name: str) -> AbstractContextManager[None]:
        """Nothing to wait for."""
        return nullcontext()

    def gather(self, value: Any, name: str = "gather", meanwhile: Callable[[], None] = nothing) -> list[Any]:
        """The own value."""
        meanwhile()
        return [value]

    def broadcast(self, value: Any, source: int = 0) -> Any:
        """The value."""
        return value

    def mean(self, states: Sequence[State]) -> State:
        """Their mean."""
        return mean_state(states)

    def notices(self, topology: Topology) -> Notices | None:
        """None."""
        return None


class CollectiveWire(GlooWire):
    """Its errors are those of collectives."""

    def failure(self, peers: Sequence[int], name: str, error: RuntimeError) -> CommunicationError:
        """The error of a collective of that name."""
        what = _failed(name, self.step)
        return communication_error(self.rank, what, f"agent {listed(sorted(set(peers)))}", self.timeout, error, peers)


class ProcessGroup:
    """The processes of the default group of `torch.distributed`, each of which writes to every other one at once.

    So a collective takes half a round trip, of which a tree or a ring has several.

    Args:
        timeout: after which a collective gives up.
        interrupted: whether an exception has stopped this process.
        step: the number of the step that this process is at.

    Attributes:
        traffic: payload bytes that this process has sent, by name of the collective.
    """

    SLOT = 2048
    """Bytes of the first message of a value; what is longer follows in another one."""
    SLOTS, REST, SHARES, MEANS = 1, 2, 3, 4
    """Places of messages on the wire."""

    def __init__(self, timeout: timedelta, interrupted: Callable[[], bool], step: Callable[[], int]) -> None:
        self.traffic: Counter[str] = Counter()
        self._timeout = timeout
        self._interrupted = interrupted
        self._step = step
        self._wire: CollectiveWire | None = None
        self._notices: Notices | None = None

    # --- who

    def connect(self) -> CollectiveWire:
        """The wire to all others, once the process group is there: over gloo also where that uses NCCL."""
        if self._wire is None:
            group: Any = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=self._timeout)
            self._wire = CollectiveWire(dist.get_rank(), self._timeout, group=group)
        return self._wire

    def notices(self, topology: Topology) -> Notices | None:
        """What this process tells its neighbors at every step."""
        if self._notices is None and dist.is_initialized():
            wire = GlooWire(dist.get_rank(), self._timeout, number=1, group=self.connect().group)
            self._notices = Notices(wire, topology, self.traffic)
        return self._notices

    def close(self) -> None:
        """Let go of what would keep connections open."""
        for part in (self._wire, self._notices):
            if part is not None:
                part.close()

    @property
    def rank(self) -> int:
        """Of this process."""
        return dist.get_rank() if dist.is_initialized() else 0

    @property
    def left(self) -> bool:
        """Whether an exception has stopped this process, so that the others do not answer."""
        return self._interrupted()

    def _others(self) -> list[int]:
        return [rank for rank in range(dist.get_world_size()) if rank != dist.get_rank()]

    @contextmanager
    def collective(self, name: str) -> Iterator[None]:
        """Inside, a collective of this name fails with an error that says where.

        Raises:
            CommunicationError: names the collective, this agent and the step.
        """
        try:
            yield
        except CommunicationError:
            raise
        except RuntimeError as error:
            what = _failed(name, self._step())
            raise communication_error(self.rank, what, "the others", self._timeout, error) from error

    # --- values

    def gather(self, value: Any, name: str = "gather", meanwhile: Callable[[], None] = nothing) -> list[Any]:
        """One value of every process, in the order of their ranks. A collective of this name."""
        if not dist.is_initialized():
            return [value]
        with self._talking(name) as wire:
            others = self._others()
            slots = self._expect_slots(wire, others, name)
            self._send(wire, others, value, name)
            meanwhile()
            found = {rank: self._value(wire, slot, name) for rank, slot in slots.items()}
        return [found.get(rank, value) for rank in range(dist.get_world_size())]

    def broadcast(self, value: Any, source: int = 0) -> Any:
        """The value of process `source`. A collective."""
        if not dist.is_initialized():
            return value
        with self._talking("broadcast") as wire:
            if wire.rank == source:
                self._send(wire, self._others(), value, "broadcast")
                return value
            return self._value(wire, self._expect_slots(wire, [source], "broadcast")[source], "broadcast")

    @contextmanager
    def _talking(self, name: str) -> Iterator[GlooWire]:
        wire = self.connect()
        wire.step = self._step()
        yield wire
        wire.complete_sends()

    def _expect_slots(self, wire: GlooWire, senders: Sequence[int], name: str) -> dict[int, Arrival]:
        like = torch.empty(self.SLOT, dtype=torch.uint8)
        return {rank: wire.expect(rank, self.SLOTS, name, like) for rank in senders}

    def _send(self, wire: GlooWire, receivers: Sequence[int], value: Any, name: str) -> None:
        content = pickle.dumps(value)
        first, rest = content[: self.SLOT - 8], content[self.SLOT - 8 :]
        slot = bytearray(len(content).to_bytes(8, "little") + first).ljust(self.SLOT, b"\0")
        for rank in receivers:
            self._send_bytes(wire, rank, self.SLOTS, name, slot)
            if rest:
                self._send_bytes(wire, rank, self.REST, name, bytearray(rest))

    def _send_bytes(self, wire: GlooWire, receiver: int, place: int, name: str, content: bytearray) -> None:
        self.traffic[name] += len(content)
        wire.send(receiver, place, name, torch.frombuffer(content, dtype=torch.uint8))

    def _value(self, wire: GlooWire, slot: Arrival, name: str) -> Any:
        received = bytes(wire.receive(slot).numpy())
        size, first = int.from_bytes(received[:8], "little"), received[8:]
        rest = size - len(first)
        if rest <= 0:
            return pickle.loads(first[:size])
        like = torch.empty(rest, dtype=torch.uint8)
        (sender,) = slot.peers
        last = wire.receive(wire.expect(sender, self.REST, name, like, ahead=False))
        return pickle.loads(first + bytes(last.numpy()))

    # --- tensors

    def mean(self, states: Sequence[State]) -> State:
        """The mean over all agents, see `mean_state`, of which this process has one. A collective.

        All tensors of one dtype are one vector, of which every process averages a part: that is as many bytes as an
        all-reduce, in two messages one after the other.
        """
        (state,) = states
        kinds = dict.fromkeys((wide_dtype(t), t.device) for t in state if is_averaged(t))
        means: dict[int, Tensor] = {}
        for kind in kinds:
            places = [i for i, t in enumerate(state) if is_averaged(t) and (wide_dtype(t), t.device) == kind]
            flat = torch.cat([state[i].detach().to(kind[0]).reshape(-1) for i in places])
            parts = torch.split(self._mean_of_vector(flat), [state[i].numel() for i in places])
            means |= dict(zip(places, parts, strict=True))
        return [_like(t, means[i]) if i in means else t.clone() for i, t in enumerate(state)]

    def _mean_of_vector(self, flat: Tensor) -> Tensor:
        if not dist.is_initialized():
            return flat
        if flat.nbytes <= self.SLOT // 2:
            return mean_tensor(self.gather(flat, "consensus"))
        with self._talking("consensus") as wire:
            average = self._mean_by_wire if flat.device.type == "cpu" else self._mean_by_collectives
            return average(flat, wire)

    def _mean_by_wire(self, flat: Tensor, wire: GlooWire) -> Tensor:
        parts = list(flat.tensor_split(dist.get_world_size()))
        own = parts[wire.rank]
        shares = {rank: wire.expect(rank, self.SHARES, "consensus", own, ahead=False) for rank in self._others()}
        means = {rank: wire.expect(rank, self.MEANS, "consensus", parts[rank], ahead=False) for rank in self._others()}
        for rank in self._others():
            self._send_part(wire, rank, self.SHARES, parts[rank])
        theirs = {rank: wire.receive(share) for rank, share in shares.items()}
        parts[wire.rank] = mean_tensor([theirs.get(rank, own) for rank in range(len(parts))])
        for rank in self._others():
            self._send_part(wire, rank, self.MEANS, parts[wire.rank])
        return torch.cat([wire.receive(means[rank]) if rank in means else part for rank, part in enumerate(parts)])

    def _send_part(self, wire: GlooWire, receiver: int, place: int, part: Tensor) -> None:
        self.traffic["consensus"] += part.nbytes
        wire.send(receiver, place, "consensus", part)

    def _mean_by_collectives(self, flat: Tensor, wire: GlooWire) -> Tensor:
        """The same by collectives of `torch.distributed`, for tensors of a device."""
        count = dist.get_world_size()
        padded = torch.cat([flat, flat.new_zeros(-len(flat) % count)])
        shares = torch.empty_like(padded)
        dist.all_to_all_single(shares, padded)
        means = torch.empty_like(padded)
        dist.all_gather_into_tensor(means, mean_tensor(list(shares.view(count, -1))))
        self.traffic["consensus"] += 2 * (count - 1) * padded.nbytes // count
        return means[: len(flat)]


def _failed(collective: str, step: int) -> str:
    return f"complete the collective {collective!r} with all other agents at step {step}"


def _like(tensor: Tensor, part: Tensor) -> Tensor:
    """A part of a vector in the shape, dtype and memory format of the tensor."""
    return torch.empty_like(tensor).copy_(part.view(tensor.shape))


def from_agent_0(state: State) -> State:
    """Copies of the tensors of process 0, which all have in these shapes and dtypes. A collective."""
    parts = [tensor.detach().contiguous().view(-1).view(torch.uint8) for tensor in state]
    for device in dict.fromkeys(part.device for part in parts):
        places = [i for i, part in enumerate(parts) if part.device == device]
        flat = torch.cat([parts[i] for i in places])  # as bytes: gloo and NCCL know few dtypes
        dist.broadcast(flat, src=0)
        for i, part in zip(places, torch.split(flat, [parts[i].numel() for i in places]), strict=True):
            parts[i] = part.clone()  # aligned for its dtype
    return [part.view(tensor.dtype).view(tensor.shape) for part, tensor in zip(parts, state, strict=True)]
