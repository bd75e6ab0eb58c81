"""Signals of the operating system, which reach some agents, each at any moment, and on which all act at one step."""

from __future__ import annotations


class Signal:
    """One kind of signal, as one agent knows it.

    It is handed on along the edges, one edge per step, with the step at which all will know of it. Of two agents that
    got the same one, the earlier decides. Before all have acted on one, no further one is told.

    Attributes:
        received: how many this process has got; counted by a handler.
        number: how many are known, of whichever agent.
        step: when to act on the last of them.
        answered: on how many the agents have acted.
    """

    def __init__(self) -> None:
        self.received = 0
        self.number = 0
        self.step = 0
        self.answered = 0

    @property
    def pending(self) -> bool:
        """Whether there is one on which this agent has not acted, known to others or not."""
        return max(self.received, self.number) > self.answered

    def take_note(self, step: int, hops: int) -> None:
        """At the start of `step`: what this process has got is a new one, unless it is known already."""
        if self.number == self.answered and self.received > self.number:
            self.hear(self.number + 1, step + hops)

    def hear(self, number: int, step: int) -> None:
        """An agent knows of so many, and acts on the last at `step`."""
        if number > self.number:
            self.number, self.step = number, step
        elif number == self.number:
            self.step = min(self.step, step)

    def due(self, step: int) -> bool:
        """Whether to act now, between steps, of which so many are made."""
        return self.number > self.answered and step >= self.step

    def answer(self) -> None:
        """All agents act now; what this process has got meanwhile was the same one, as what others will get later."""
        self.answered = self.number = max(self.number, self.answered + 1)
        self.received = min(self.received, self.answered)
