"""Partitions: which samples belong to which agent, from all the same to one class each.

Every partition takes the labels of n samples (array, tensor or list; any values that can be sorted) and returns one
sorted int64 index array per agent. The arrays are disjoint, cover all n samples, and none is empty. Equal arguments
give equal partitions, and no global random state is touched. Each raises a ValueError when the samples cannot be shared
out like that.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cga_lightning.names import lookup

Indices = NDArray[np.int64]


def by_label(labels: ArrayLike, agents: int, seed: int = 0) -> list[Indices]:
    """Give each agent whole classes: class c goes to agent c mod N (the CGA experiments).

    With more agents than classes, agent j holds class j mod C, and the agents of one class share its samples evenly
    (`seed` draws who gets which).
    """
    values = _labels(labels, agents)
    classes = _by_class(values, np.random.default_rng(seed))
    parts: list[list[Indices]] = [[] for _ in range(agents)]
    for c, samples in enumerate(classes):
        owners = range(c, agents, len(classes)) or [c % agents]
        _check_enough(len(samples), len(owners), f"class {values[samples[0]]}")
        for owner, part in zip(owners, np.array_split(samples, len(owners)), strict=True):
            parts[owner].append(part)
    return _joined(parts)


def iid(labels: ArrayLike | int, agents: int, seed: int = 0) -> list[Indices]:
    """Deal all samples out at random, equally many to each agent; takes the labels or just their number n."""
    count = int(labels) if isinstance(labels, (int, np.integer)) else len(np.asarray(labels))
    _check_agents(agents)
    _check_enough(count, agents, "the data")
    order = np.random.default_rng(seed).permutation(count)
    return [np.sort(part) for part in np.array_split(order, agents)]


def shards(labels: ArrayLike, agents: int, shards_per_agent: int = 2, seed: int = 0) -> list[Indices]:
    """Sort by label, cut into equal shards, and deal each agent some of them (McMahan et al. 2017)."""
    values = _labels(labels, agents)
    if shards_per_agent < 1:
        raise ValueError(f"shards_per_agent must be at least 1, got {shards_per_agent}.")
    _check_enough(len(values), agents * shards_per_agent, "the data", unit="shards")
    generator = np.random.default_rng(seed)
    pieces = np.array_split(np.concatenate(_by_class(values, generator)), agents * shards_per_agent)
    hands = generator.permutation(len(pieces)).reshape(agents, shards_per_agent)
    return _joined([[pieces[piece] for piece in hand] for hand in hands.tolist()])


def dirichlet(labels: ArrayLike, agents: int, alpha: float = 0.1, seed: int = 0) -> list[Indices]:
    """Give each agent its own mixture of classes, q ~ Dirichlet(alpha * p) (Hsu et al. 2019).

    p is the mixture of the whole data. Small `alpha`: nearly one class each; large: nearly iid. All agents get equally
    many samples. A class that runs out is no longer drawn, so the last agents take what is left.
    """
    values = _labels(labels, agents)
    if not 0 < alpha < np.inf:
        raise ValueError(f"alpha must be positive and finite, got {alpha}; use iid for the limit of large alpha.")
    generator = np.random.default_rng(seed)
    classes = _by_class(values, generator)
    stock = np.array([len(samples) for samples in classes])
    prior = alpha * stock / len(values)
    parts: list[list[Indices]] = []
    for size in map(len, np.array_split(values, agents)):
        taken = _draw(size, generator.dirichlet(prior), stock, generator)
        stock -= taken
        parts.append([s[start : start + k] for s, start, k in zip(classes, stock, taken, strict=True)])
    return _joined(parts)


Partition = Callable[..., list[Indices]]

PARTITIONS: dict[str, Partition] = {
    "by_label": by_label,
    "iid": iid,
    "shards": shards,
    "dirichlet": dirichlet,
}


def from_name(name: str) -> Partition:
    """The partition function of that name; call it as `partition(labels, agents, seed=...)`.

    Raises:
        ValueError: there is none of that name.
    """
    return lookup("partition", PARTITIONS, name)


def _labels(labels: ArrayLike, agents: int) -> NDArray[Any]:
    _check_agents(agents)
    values = np.asarray(labels)
    if values.ndim != 1:
        raise ValueError(f"labels must be one class per sample, [n], got the shape {list(values.shape)}.")
    _check_enough(len(values), agents, "the data")
    return values


def _check_agents(agents: int) -> None:
    if agents < 1:
        raise ValueError(f"A partition needs at least 1 agent, got {agents}.")


def _check_enough(samples: int, shares: int, what: str, unit: str = "agents") -> None:
    if samples < shares:
        raise ValueError(
            f"Sharing out {what} needs at least one sample for each of {shares} {unit}, but it has {samples}"
            "; use fewer agents or another partition."
        )


def _by_class(values: NDArray[Any], generator: np.random.Generator) -> list[Indices]:
    """The samples of each class, in random order; classes sorted."""
    order = generator.permutation(len(values))
    order = order[np.argsort(values[order], kind="stable")]
    starts = np.flatnonzero(values[order][1:] != values[order][:-1]) + 1
    return np.split(order, starts)


def _draw(size: int, mixture: NDArray[np.float64], stock: Indices, generator: np.random.Generator) -> Indices:
    """Draw `size` samples by class without replacement: counts per class, at most `stock`."""
    taken = np.zeros_like(stock)
    while size > taken.sum():
        left = stock - taken
        weights = np.where(left > 0, mixture, 0)
        weights = weights if weights.sum() > 0 else left.astype(np.float64)
        drawn = generator.multinomial(size - taken.sum(), weights / weights.sum())
        taken += np.minimum(drawn, left)
    return taken


def _joined(parts: list[list[Indices]]) -> list[Indices]:
    return [np.sort(np.concatenate(part)).astype(np.int64, copy=False) for part in parts]
