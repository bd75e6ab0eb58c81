"""Which methods cannot be told from the best one, with the few seeds that there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cga_lightning.cli.extras import tools

LEVEL = 0.05


def paired_p(first: Sequence[float], second: Sequence[float]) -> float:
    """The two-sided p-value of Student's t-test of paired values: that their mean difference is 0.

    Args:
        first, second: one value per seed, of at least two, in the same order.
    """
    with tools("The test of significance"):
        from scipy.stats import t as student
    differences = np.subtract(first, second)
    mean, error = differences.mean(), differences.std(ddof=1) / np.sqrt(len(differences))
    if error == 0:
        return 0.0 if mean else 1.0
    return float(2 * student.sf(abs(mean / error), len(differences) - 1))


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979), in their order."""
    corrected, largest = [0.0] * len(values), 0.0
    for place, index in enumerate(np.argsort(values, kind="stable").tolist()):
        largest = max(largest, min(1.0, (len(values) - place) * values[index]))
        corrected[index] = largest
    return corrected


def best_of(values: Mapping[str, Sequence[float]]) -> set[str]:
    """The name with the highest mean, and those that are not significantly worse; empty if that cannot be tested.

    Significant: p < 0.05 in a paired t-test against the best, with Holm's correction for the number of others.

    Args:
        values: one value per seed, in the same order of seeds for all names.
    """
    if len(values) < 2 or any(len(per_seed) < 2 for per_seed in values.values()):
        return set()
    best = max(values, key=lambda name: float(np.mean(values[name])))
    others = [name for name in values if name != best]
    corrected = holm([paired_p(values[best], values[name]) for name in others])
    return {best} | {name for name, p in zip(others, corrected, strict=True) if p >= LEVEL}
