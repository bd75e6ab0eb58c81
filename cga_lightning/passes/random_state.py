"""The random streams of an agent: torch, Python and numpy, saved, put back and seeded together.

They change hands several times in a step, mostly without having moved. To ask Python's and numpy's generators for their
states takes a tenth of a millisecond, so a trace of them tells first whether that is needed.
"""

from __future__ import annotations

import ctypes
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class _Saved(NamedTuple):
    cpu: Tensor
    cuda: Tensor | None
    python: tuple[Any, ...]
    numpy: dict[str, Any]


class RandomState(_Saved):
    """The state of the random generators of torch, the current CUDA device, Python and numpy.

    Tensors, numbers and plain containers only, so that any reader of checkpoints accepts its `_asdict()`.
    """

    _trace: tuple[bytes, bytes] | None = None

    @classmethod
    def capture(cls, since: RandomState | None = None) -> RandomState:
        """The state now; faster where the generators come from the state `since` and have hardly moved."""
        trace = _trace()
        if since is not None and since._is_still_at(trace):
            python, numpy = since.python, since.numpy
        else:
            python, numpy = random.getstate(), _numpy_state()
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
        state = cls(torch.get_rng_state(), cuda, python, numpy)
        keeps_a_number = numpy["has_gauss"] or python[-1] is not None  # which the next normal draw takes, without trace
        state._trace = None if keeps_a_number else trace
        return state

    def restore(self, since: RandomState | None = None) -> None:
        """Make it the state again; faster where the generators come from the state `since` and have hardly moved."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)
        if since is None or since._trace != self._trace or not since._is_still_at(_trace()):
            random.setstate(self.python)
            np.random.set_state(self.numpy)  # noqa: NPY002

    def _is_still_at(self, trace: tuple[bytes, bytes] | None) -> bool:
        """Whether Python's and numpy's generators, which come from this state and have this trace, have not moved."""
        return trace is not None and self._trace == trace


def _trace() -> tuple[bytes, bytes] | None:
    """The memory of Python's and numpy's global generators; None where it is not known how they keep their states.

    Two traces are equal only if the states are, except for the second number of a pair of normal ones that a generator
    may keep elsewhere.
    """
    python = random.random.__self__  # type: ignore[attr-defined]
    numpy: Any = np.random.get_bit_generator()  # type: ignore[attr-defined]  # noqa: NPY002
    if sys.implementation.name != "cpython" or type(numpy) is not np.random.MT19937:
        return None
    head, size = object.__basicsize__, type(python).__basicsize__
    body = ctypes.string_at(id(python) + head, size - head)
    return body, ctypes.string_at(numpy.ctypes.state_address, _NUMPY_BYTES)


_NUMPY_BYTES = 625 * 4
"""Of the state of a Mersenne twister in numpy: 624 words and a place among them."""


def _numpy_state() -> dict[str, Any]:
    """With lists in place of arrays: numpy takes them over twenty times faster, and checkpoints hold them."""
    state: dict[str, Any] = np.random.get_state(legacy=False)  # noqa: NPY002
    words = {name: word.tolist() if isinstance(word, np.ndarray) else word for name, word in state["state"].items()}
    return {**state, "state": words}


def seed_all(seed: int) -> None:
    """Seed torch (all devices), Python and numpy, and nothing else: no environment variable is written."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002


class RandomStreams:
    """Those of several agents: of one at a time they are in the generators.

    Args:
        states: where they start; those of the first agent are in the generators already.
    """

    def __init__(self, states: Sequence[RandomState]) -> None:
        self._states = list(states)
        self._inside = 0
        self._last: RandomState | None = None  # from which the generators come

    @classmethod
    def seeded(cls, ranks: Sequence[int]) -> RandomStreams:
        """The seed now plus the rank, as with one process per agent; the generators get those of the first rank."""
        seed, states = torch.initial_seed(), []
        for rank in ranks:
            seed_all(seed + rank)
            states.append(RandomState.capture())
        states[0].restore()
        return cls(states)

    def __len__(self) -> int:
        return len(self._states)

    def give(self, agent: int) -> RandomState:
        """Random numbers come from the streams of this agent from now on; returns where these are."""
        last = self._last = self._states[self._inside] = RandomState.capture(since=self._last)
        if agent != self._inside:
            self._inside, self._last = agent, self._states[agent]
            self._last.restore(last)
        return self._last

    @contextmanager
    def drawing(self, agent: int) -> Iterator[None]:
        """Inside the block, random numbers come from the streams of this agent."""
        inside = self._inside
        self.give(agent)
        try:
            yield
        finally:
            self.give(inside)
