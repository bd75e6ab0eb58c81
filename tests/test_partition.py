"""Every partition keeps the same promises; a new one is one line in PARTITIONS."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cga_lightning import partition
from cga_lightning.partition import (
    PARTITIONS,
    by_label,
    counts,
    dirichlet,
    from_name,
    iid,
    natural_id,
    needs_labels,
    pathological,
    quantity_skew,
    shards,
)

SPLITS = [
    *(split for split in PARTITIONS.values() if split is not natural_id),  # which has as many agents as ids, or fewer
    partial(quantity_skew, alpha=1e-3),
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


CONVERSIONS = {
    "column": lambda labels: labels[:, None],
    "one-hot": lambda labels: np.eye(10)[labels],
    "one-hot tensor": lambda labels: torch.nn.functional.one_hot(torch.from_numpy(labels)),
    "one-hot booleans": lambda labels: np.eye(10, dtype=bool)[labels],
    "list of one-hot tensors": lambda labels: list(torch.eye(10)[torch.from_numpy(labels)]),
    "list of tensors": lambda labels: list(torch.from_numpy(labels)),
    "whole floats": lambda labels: labels.astype(float),
    "fractions": lambda labels: labels / 10,
    "with a gradient": lambda labels: torch.tensor(labels / 10, requires_grad=True),
    "objects": lambda labels: np.array([f"class {label}" for label in labels], dtype=object),
}


@pytest.mark.parametrize("split", [by_label, dirichlet, shards])
@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS)
def test_the_same_classes_in_another_form(split, convert):
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


def effective_classes(parts, labels):
    """Mean over agents of exp(entropy) of an agent's classes."""
    mixtures = [np.unique(labels[part], return_counts=True)[1] / len(part) for part in parts]
    return np.mean([np.exp(-(mixture * np.log(mixture)).sum()) for mixture in mixtures])


@pytest.mark.parametrize(("agents", "fewest"), [(5, 2), (10, 1), (20, 1)])
def test_the_smaller_alpha_the_fewer_classes(agents, fewest):
    """Down to whole classes: of 10 classes 5 agents hold 2 each, since all samples are dealt out evenly."""
    labels = np.repeat(np.arange(10), 100)
    found = [
        np.mean([effective_classes(dirichlet(labels, agents, alpha, seed), labels) for seed in range(20)])
        for alpha in (10, 1, 0.1, 1e-2, 1e-4, 1e-12, 1e-320)
    ]
    assert all(small <= 1.001 * large for large, small in zip(found, found[1:], strict=False))
    assert found[1] > 1.2 * found[3] and found[-3:] == pytest.approx([fewest] * 3, rel=1e-6)


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**32))
def test_one_class_each_in_the_limit(classes, agents_per_class, samples, seed):
    labels = np.repeat(np.arange(classes), agents_per_class * samples)
    parts = dirichlet(labels, classes * agents_per_class, alpha=1e-9, seed=seed)
    assert effective_classes(parts, labels) == pytest.approx(1)


def test_shards_of_a_regression_are_ranges_of_the_target():
    targets = np.random.default_rng(1).random(100)
    parts = shards(targets, 5, shards_per_agent=1)
    extents = sorted((targets[part].min(), targets[part].max()) for part in parts)
    assert all(high < low for (_, high), (low, _) in zip(extents, extents[1:], strict=False))


def test_iid_asks_for_no_labels():
    assert [needs_labels(split) for split in (iid, partial(iid, seed=1), partial(partial(iid), seed=2))] == [False] * 3
    others = (split for split in SPLITS if getattr(split, "func", split) not in (iid, quantity_skew))
    assert all(map(needs_labels, others))
    assert_same(iid([{"any": "thing"}, None, [1, 2]], 2), iid(3, 2))


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
        (lambda: by_label(np.ones((60, 5)), 2), r"got the shape \[60, 5\], which is not one-hot; give one label"),
        (lambda: by_label([[1], [1, 2]] * 4, 2), "one class per sample, .* got several of some"),
        (lambda: by_label([{1}, {1, 2}], 2), "numbers or strings, of one type, got [{]1[}]: unhashable type: 'set'"),
        (lambda: by_label([{"a": 1}, {"a": 2}], 2), "numbers or strings"),
        (lambda: by_label([1, 2, None], 2), "got None at sample 2; leave it out"),
        (lambda: by_label([1.0, float("nan"), 2.0], 2), "got nan at sample 1"),
        (lambda: by_label(["cat", float("nan")], 2), "got nan at sample 1"),
        (lambda: by_label(["cat", 1], 2), "numbers or strings, of one type"),
        (lambda: by_label(np.linspace(0.1, 0.9, 8), 2), "8 different values among 8 samples, such as 0.1: targets of"),
        (lambda: dirichlet(np.linspace(0.1, 0.9, 8), 2), "Use shards or iid, or give classes"),
        (lambda: iid(3, 0), "at least 1 agent, got 0"),
        (
            lambda: from_name("random"),
            "Unknown partition 'random'; known: by_label, iid, shards, dirichlet, quantity_skew,",
        ),
    ],
)
def test_bad_arguments(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@given(
    labels=st.lists(st.integers(0, 6), min_size=30, max_size=60),
    agents=st.integers(1, 6),
    each=st.integers(1, 7),
    seed=st.integers(0, 2**32),
)
def test_pathological_gives_every_agent_that_many_classes(labels, agents, each, seed):
    classes = len(set(labels))
    if not each <= classes <= agents * each:
        with pytest.raises(ValueError, match="classes_per_agent must be from"):
            pathological(labels, agents, each, seed)
        return
    try:
        parts = pathological(labels, agents, each, seed)
    except ValueError as error:
        assert "at least one sample for each of" in str(error)  # a class has fewer samples than owners
        return
    assert_partition(parts, len(labels), agents)
    names, table = counts(labels, parts)
    assert names == sorted(set(labels)) and ((table > 0).sum(axis=1) == each).all()
    owners = (table > 0).sum(axis=0)
    assert owners.max() - owners.min() <= 1
    for of_class in table.T:
        shares = of_class[of_class > 0]
        assert shares.max() - shares.min() <= 1


@given(
    ids=st.lists(st.sampled_from("abcdefgh"), min_size=8, max_size=80),
    agents=st.integers(1, 8),
    seed=st.integers(0, 2**32),
)
def test_natural_ids_stay_together(ids, agents, seed):
    different = len(set(ids))
    if len(ids) < agents or different < agents:
        with pytest.raises(ValueError):
            natural_id(ids, agents, seed)
        return
    parts = natural_id(ids, agents, seed)
    assert_partition(parts, len(ids), agents)
    _, table = counts(ids, parts)
    assert ((table > 0).sum(axis=0) == 1).all()
    sizes, largest = table.sum(axis=1), table.sum(axis=0).max()
    if different == agents:
        assert (table.argmax(axis=1) == np.arange(agents)).all()
    assert sizes.max() - sizes.min() <= largest  # no id could go to a poorer agent than the one that got the last


@given(samples=st.integers(1, 200), agents=st.integers(1, 12), alpha=st.floats(1e-3, 1e3), seed=st.integers(0, 2**32))
def test_quantity_skew_asks_for_a_number_only(samples, agents, alpha, seed):
    if samples < agents:
        with pytest.raises(ValueError, match="at least one sample"):
            quantity_skew(samples, agents, alpha, seed)
        return
    parts = quantity_skew(samples, agents, alpha, seed)
    assert_partition(parts, samples, agents)
    assert_same(parts, quantity_skew(list(range(samples)), agents, alpha, seed))
    assert not needs_labels(quantity_skew) and needs_labels(natural_id)


def test_quantities_are_the_more_alike_the_larger_alpha():
    spread = [np.std([len(part) for part in quantity_skew(2000, 10, alpha)]) for alpha in (0.01, 1.0, 1e6)]
    assert spread[0] > 2 * spread[1] > 20 * spread[2]


def test_the_picture_has_the_numbers():
    parts = by_label(DIGITS, 5)
    heat, bars, _ = partition.plot(DIGITS, parts).axes
    _, table = counts(DIGITS, parts)
    np.testing.assert_array_equal(heat.images[0].get_array(), table)
    assert [bar.get_width() for bar in bars.patches] == [len(part) for part in parts]
    expected = [[(DIGITS[part] == c).sum() for c in range(10)] for part in parts]
    np.testing.assert_array_equal(table, expected)


def test_the_picture_says_what_it_needs(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'cga-lightning\[tools\]'"):
        partition.plot(DIGITS, by_label(DIGITS, 2))
