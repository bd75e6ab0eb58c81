"""What agents in different processes tell their neighbors at every step, a few numbers along each edge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta

import torch

from cga_lightning.core.communication import GlooWire
from cga_lightning.core.exchanges import CommunicationError
from cga_lightning.topology import Topology

NAME = "what comes next"


class Notices:
    """Numbers to all neighbors of any step and of either direction, and theirs.

    Args:
        wire: carries them.
        topology: whose edges they go along, both ways.
        traffic: counts their bytes.

    Attributes:
        hops: after how many steps every agent has heard of a number that is handed on.
    """

    COUNT = 10

    def __init__(self, wire: GlooWire, topology: Topology, traffic: Counter[str]) -> None:
        self._wire = wire
        self._traffic = traffic
        self._neighbors = sorted({*topology.in_neighbors(wire.rank), *topology.out_neighbors(wire.rank)})
        self.rank = wire.rank
        self.hops = topology.diameter
        self._expect()

    def _expect(self) -> None:
        like = torch.zeros(self.COUNT, dtype=torch.int64)
        self._awaited = {rank: self._wire.expect(rank, 0, NAME, like) for rank in self._neighbors}

    def tell(self, numbers: Sequence[int], step: int) -> None:
        """Send the own numbers off."""
        self._wire.step = step
        message = torch.tensor(numbers, dtype=torch.int64)
        for rank in self._neighbors:
            self._traffic["notices"] += message.nbytes
            self._wire.send(rank, 0, NAME, message)

    def hear(self) -> dict[int, list[int]]:
        """The numbers of every neighbor that go with those that were told.

        Raises:
            CommunicationError: when they do not come.
        """
        heard = {rank: self._wire.receive(arrival).tolist() for rank, arrival in self._awaited.items()}
        self._wire.complete()
        self._expect()
        return heard

    def last_words(self, seconds: float) -> Mapping[int, list[int]]:
        """What neighbors have sent before they left, where this agent cannot go on either and waits no longer."""
        heard: dict[int, list[int]] = {}
        self._wire.timeout = timedelta(seconds=seconds)
        for rank, arrival in self._awaited.items():
            try:
                heard[rank] = self._wire.wait(arrival).tolist()
            except RuntimeError:
                continue
        return heard

    def flush(self) -> None:
        """Wait until what was told is on its way."""
        with suppress(CommunicationError):
            self._wire.complete_sends()

    def close(self) -> None:
        """Let go of what would keep connections open."""
        self._awaited = {}
        self._wire.close()
