"""Every partition keeps the same promises; a new one is one line in PARTITIONS."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cga_lightning.partition import PARTITIONS, by_label, dirichlet, from_name, iid, shards

SPLITS = [
    *PARTITIONS.values(),
    partial(shards, shards_per_agent=1),
    partial(dirichlet, alpha=1e-3),
    partial(dirichlet, alpha=1e3),
]
DIGITS = np.random.default_rng(0).integers(10, size=2000)


def assert_partition(parts, samples, agents):
    assert len(parts) == agents
    assert all(part.dtype == np.int64 and part.ndim == 1 and len(part) > 0 for part in parts)
    assert all((np.diff(part) > 0).all() for part in parts)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(samples))


def assert_same(parts, others):
    for part, other in zip(parts, others, strict=True):
        np.testing.assert_array_equal(part, other)


def classes_of(parts):
    return [sorted(set(DIGITS[part].tolist())) for part in parts]


def distance_to_iid(parts):
    """Mean total variation between an agent's mixture of classes and that of the whole."""
    mixtures = [np.bincount(DIGITS[part], minlength=10) / len(part) for part in parts]
    return np.mean([np.abs(mixture - np.bincount(DIGITS) / len(DIGITS)).sum() / 2 for mixture in mixtures])


@pytest.mark.parametrize("agents", [1, 2, 3, 5, 10, 12, 40])
@pytest.mark.parametrize("split", SPLITS)
def test_promises(split, agents):
    parts = split(DIGITS, agents)
    assert_partition(parts, len(DIGITS), agents)
    assert_same(parts, split(DIGITS, agents, seed=0))


@pytest.mark.parametrize("split", SPLITS)
def test_seed_and_global_state(split):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = split(DIGITS, 40, seed=1), split(DIGITS, 40, seed=2)
    assert any(not np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("convert", [list, torch.from_numpy, lambda labels: np.array(list("abcdefghij"))[labels]])
def test_kinds_of_labels(split, convert):
    assert_same(split(convert(DIGITS), 5), split(DIGITS, 5))


@given(
    labels=st.lists(st.integers(-3, 3), min_size=8, max_size=40),
    agents=st.integers(1, 8),
    split=st.sampled_from([iid, partial(shards, shards_per_agent=1), partial(dirichlet, alpha=1e-6), dirichlet]),
    seed=st.integers(0, 2**32),
)
def test_never_empty_down_to_one_sample_each(labels, agents, split, seed):
    assert_partition(split(labels, agents, seed=seed), len(labels), agents)


@pytest.mark.parametrize(
    ("agents", "classes"),
    [
        (5, [[0, 5], [1, 6], [2, 7], [3, 8], [4, 9]]),
        (10, [[c] for c in range(10)]),
        (40, [[c % 10] for c in range(40)]),
        (3, [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]),
        (12, [[c % 10] for c in range(12)]),
    ],
)
def test_by_label_gives_whole_classes(agents, classes):
    assert classes_of(by_label(DIGITS, agents)) == classes


def test_by_label_shares_a_class_out_evenly():
    sizes = [len(part) for part in by_label(DIGITS, 40)]
    for c in range(10):
        assert max(sizes[c::10]) - min(sizes[c::10]) <= 1
        assert sum(sizes[c::10]) == (c == DIGITS).sum()


@pytest.mark.parametrize("split", [iid, dirichlet])
def test_equal_sizes(split):
    sizes = [len(part) for part in split(DIGITS, 7)]
    assert max(sizes) - min(sizes) <= 1


def test_iid_takes_a_length():
    assert_same(iid(len(DIGITS), 5), iid(DIGITS, 5))


def test_shards_hold_few_classes():
    assert max(map(len, classes_of(shards(DIGITS, 10, shards_per_agent=2)))) <= 4
    assert len(shards(DIGITS, 10, 2)[3]) == 200


def test_alpha_sets_the_heterogeneity():
    distances = [distance_to_iid(dirichlet(DIGITS, 10, alpha)) for alpha in (0.01, 1.0, 1e4)]
    assert distances[0] > 0.7 > distances[1] > 0.3 > 0.15 > distances[2]
    assert distance_to_iid(iid(DIGITS, 10)) < 0.15


@pytest.mark.parametrize("name", PARTITIONS)
def test_from_name(name):
    assert_partition(from_name(name)(DIGITS, 5, seed=3), len(DIGITS), 5)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: iid(3, 4),
            "the data needs at least one sample for each of 4 agents, but it has 3; use fewer",
        ),
        (lambda: dirichlet([0, 1], 3), "each of 3 agents, but it has 2"),
        (lambda: by_label([0, 1], 3), "each of 3 agents, but it has 2"),
        (
            lambda: by_label([0, 7, 7, 7], 4),
            "class 0 needs at least one sample for each of 2 agents, but it has 1",
        ),
        (lambda: shards([0, 1, 2], 2), "each of 4 shards, but it has 3"),
        (lambda: shards([0, 1, 2], 2, shards_per_agent=0), "shards_per_agent must be at least 1, got 0"),
        (lambda: dirichlet([0, 1], 2, alpha=0), "alpha must be positive and finite, got 0"),
        (lambda: dirichlet([0, 1], 2, alpha=float("nan")), "alpha must be positive and finite, got nan"),
        (lambda: by_label([[0, 1]], 2), r"one class per sample, \[n\], got the shape \[1, 2\]"),
        (lambda: iid(3, 0), "at least 1 agent, got 0"),
        (
            lambda: from_name("random"),
            "Unknown partition 'random'; known: by_label, iid, shards, dirichlet, or",
        ),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()
