"""The marks in the tables, against scipy and against the definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from cga_lightning.cli.comparison.significance import LEVEL, best_of, holm, paired_p

VALUES = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=2, max_size=8)


@given(VALUES)
def test_p_is_that_of_scipy(pairs: list[tuple[int, int]]) -> None:
    first, second = np.array(pairs).T / 1000
    assume(np.ptp(first - second) > 1e-9)
    assert paired_p(first, second) == pytest.approx(ttest_rel(first, second).pvalue, abs=1e-12)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_is_the_largest_of_the_smaller_ones(values: list[float]) -> None:
    for value, corrected in zip(values, holm(values), strict=True):
        smaller = [other for other in values if other <= value]
        expected = max(min(1, (len(values) - sum(o < other for o in values)) * other) for other in smaller)
        assert corrected == pytest.approx(expected)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text(max_size=3), st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=2, max_size=6))
def test_the_best_is_marked_and_all_that_cannot_be_told_from_it(values: dict[str, list[float]]) -> None:
    marked = best_of(values)
    best = max(values, key=lambda name: np.mean(values[name]))
    assert best in marked
    for name in values.keys() - marked:
        assert paired_p(values[best], values[name]) < LEVEL


def test_clear_and_unclear_cases() -> None:
    clear = {"a": [0.90, 0.91, 0.92], "b": [0.50, 0.51, 0.521], "c": [0.10, 0.12, 0.11]}
    assert best_of(clear) == {"a"}
    assert best_of({**clear, "d": [0.99, 0.8, 0.93]}) == {"a", "d"}
    assert best_of({"a": [0.9], "b": [0.1]}) == set()  # one seed tells nothing
    assert best_of({"a": [0.9, 0.9], "b": [0.9, 0.9]}) == {"a", "b"}
