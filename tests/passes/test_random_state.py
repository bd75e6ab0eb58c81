"""Random states come back, also where a trace tells that a generator need not be asked."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cga_lightning.passes.random_state import RandomState, RandomStreams, seed_all

DRAWS = {
    "torch": lambda: float(torch.rand(())),
    "python": random.random,
    "python normal": lambda: random.gauss(0, 1),
    "numpy": lambda: float(np.random.rand()),  # noqa: NPY002
    "numpy normal": lambda: float(np.random.randn()),  # noqa: NPY002
}


@pytest.fixture(autouse=True)
def _as_before():
    before = RandomState.capture()
    yield
    before.restore()


def numbers(names):
    return [DRAWS[name]() for name in names]


@settings(max_examples=100, deadline=None)
@given(
    before=st.lists(st.sampled_from(sorted(DRAWS)), max_size=3),
    first=st.lists(st.sampled_from(sorted(DRAWS)), max_size=4),
    second=st.lists(st.sampled_from(sorted(DRAWS)), max_size=4),
)
def test_every_stream_goes_on_where_it_was(before, first, second):
    """What follows `start` is drawn again after `now`, as often as one likes: a pass with the numbers of another."""
    seed_all(1)
    numbers(before)
    start = RandomState.capture()
    drawn = numbers(first)
    now = RandomState.capture(since=start)
    expected = numbers(second)
    now.restore()
    for _ in range(2):
        current = RandomState.capture(since=now)
        start.restore(since=current)
        assert numbers(first) == drawn
        current.restore(since=start)
    assert numbers(second) == expected


def test_nothing_is_asked_twice():
    start = RandomState.capture()
    again = RandomState.capture(since=start)
    assert again.python is start.python and again.numpy is start.numpy
    random.random()
    assert RandomState.capture(since=start).python != start.python


def test_another_generator_of_numpy_is_asked_every_time():
    before = np.random.get_bit_generator()  # noqa: NPY002
    np.random.set_bit_generator(np.random.PCG64(0))  # noqa: NPY002
    try:
        start = RandomState.capture()
        drawn = numbers(["numpy"])
        start.restore(since=start)
        assert numbers(["numpy"]) == drawn
    finally:
        np.random.set_bit_generator(before)  # noqa: NPY002


def test_streams_of_agents_start_at_the_seed_plus_their_rank():
    torch.manual_seed(5)
    expected = []
    for rank in (0, 3):
        seed_all(5 + rank)
        expected.append(numbers(DRAWS))
    torch.manual_seed(5)
    streams = RandomStreams.seeded([0, 3])
    with streams.drawing(1):
        assert numbers(DRAWS) == expected[1]
    assert numbers(DRAWS) == expected[0]


def alone(agent, kinds):
    """What an agent draws that has the generators for itself."""
    seed_all(5 + agent)
    return numbers(kinds)


@settings(max_examples=30, deadline=None)
@given(turns=st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.sampled_from(sorted(DRAWS))), max_size=8))
def test_agents_draw_from_their_streams_in_any_order(turns):
    expected = [alone(agent, [kind for turn, _, kind in turns if turn == agent]) for agent in range(3)]
    torch.manual_seed(5)
    streams, drawn = RandomStreams.seeded(range(3)), [[], [], []]
    for agent, briefly, kind in turns:
        if briefly:
            with streams.drawing(agent):
                drawn[agent] += numbers([kind])
        else:
            streams.give(agent)
            drawn[agent] += numbers([kind])
    assert drawn == expected
