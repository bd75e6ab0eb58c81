"""Partitions: which samples belong to which agent, from all the same to one class each.

Every partition takes the labels of n samples, see `classes_of`, and returns one sorted int64 index array per agent. The
arrays are disjoint, cover all n samples, and none is empty. Equal arguments give equal partitions, and no global random
state is touched. Each raises a ValueError when the samples cannot be shared out like that.
"""

from collections.abc import Callable
from functools import partial
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
    values = _repeated(_labels(labels, agents))
    classes = _by_class(values, np.random.default_rng(seed))
    parts: list[list[Indices]] = [[] for _ in range(agents)]
    for c, samples in enumerate(classes):
        owners = range(c, agents, len(classes)) or [c % agents]
        _check_enough(len(samples), len(owners), f"class {values[samples[0]]}")
        for owner, part in zip(owners, np.array_split(samples, len(owners)), strict=True):
            parts[owner].append(part)
    return _joined(parts)


def iid(labels: ArrayLike | int, agents: int, seed: int = 0) -> list[Indices]:
    """Deal all samples out at random, equally many to each agent; takes any labels, or just their number n."""
    count = int(labels) if isinstance(labels, (int, np.integer)) else len(labels)  # type: ignore[arg-type]
    _check_agents(agents)
    _check_enough(count, agents, "the data")
    order = np.random.default_rng(seed).permutation(count)
    return [np.sort(part) for part in np.array_split(order, agents)]


def shards(labels: ArrayLike, agents: int, shards_per_agent: int = 2, seed: int = 0) -> list[Indices]:
    """Sort by label, cut into equal shards, and deal each agent some of them (McMahan et al. 2017).

    The labels may be values of a regression too.
    """
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

    p is the mixture of the whole data. Small `alpha`: as few classes each as equal shares allow, one if there are as
    many agents as classes of equal size; large: nearly iid. All agents get equally many samples. A class that runs out
    is no longer drawn, so the last agents take what is left.
    """
    values = _repeated(_labels(labels, agents))
    if not 0 < alpha < np.inf:
        raise ValueError(f"alpha must be positive and finite, got {alpha}; use iid for the limit of large alpha.")
    generator = np.random.default_rng(seed)
    classes = _by_class(values, generator)
    stock = np.array([len(samples) for samples in classes])
    shares = stock / len(values)
    parts: list[list[Indices]] = []
    for size in map(len, np.array_split(values, agents)):
        taken = _draw(size, alpha, _log_mixture(alpha, shares, generator), stock, generator)
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


def needs_labels(partition: Partition) -> bool:
    """Whether a partition asks for the labels, and not just for their number."""
    while isinstance(partition, partial):
        partition = partition.func
    return partition is not iid


def classes_of(labels: Any) -> NDArray[Any]:
    """The class of every sample `[n]`, of any type that can be sorted.

    Args:
        labels: array, tensor or list `[n]` or `[n, 1]` of numbers or strings, or rows `[n, C]` that are one-hot.

    Raises:
        ValueError: a sample has several labels or none (None, NaN), or they cannot be sorted.
    """
    values = _array(labels)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    elif _one_hot(values):
        values = values.argmax(axis=1)
    if values.ndim != 1:
        raise ValueError(
            f"labels must be one class per sample, [n], got the shape {list(values.shape)}, which is not one-hot; give "
            "one label of each sample, or use iid, or index arrays of your own."
        )
    for sample in np.flatnonzero(_missing(values)):
        raise ValueError(f"labels must be one class per sample, got {values[sample]} at sample {sample}; leave it out.")
    try:
        if values.dtype.kind == "O":
            np.sort(values)
            _ = set(values.tolist())  # no lists and sets, which can be sorted too
    except TypeError as error:
        raise ValueError(f"labels must be numbers or strings, of one type, got {values[0]!r}: {error}.") from error
    return values


def _array(labels: Any) -> NDArray[Any]:
    if not isinstance(labels, list | tuple):
        return np.asarray(_on_cpu(labels))
    values = [_on_cpu(value) for value in labels]
    kinds = set(map(type, values))
    mixed = len(kinds) > 1 and str in kinds  # numpy would make strings of all, nan included
    try:
        return np.asarray(values, dtype=object if mixed else None)
    except ValueError as error:
        raise ValueError(f"labels must be one class per sample, [n], got several of some: {error}") from error


def _on_cpu(tensor: Any) -> Any:
    return tensor.detach().cpu().numpy() if hasattr(tensor, "detach") else tensor


def _one_hot(values: NDArray[Any]) -> bool:
    """Whether `[n, C]` has a single 1 in each row and 0 elsewhere, in no fewer rows than classes."""
    if values.ndim != 2 or values.dtype.kind not in "biuf" or len(values) < values.shape[1]:
        return False
    return bool(((values == 0) | (values == 1)).all() and (values.sum(axis=1) == 1).all())


def _missing(values: NDArray[Any]) -> NDArray[np.bool_]:
    if values.dtype.kind == "O":
        return np.array([value is None or value != value for value in values])
    return np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), dtype=bool)


def _labels(labels: Any, agents: int) -> NDArray[Any]:
    _check_agents(agents)
    values = classes_of(labels)
    _check_enough(len(values), agents, "the data")
    return values


def _repeated(values: NDArray[Any]) -> NDArray[Any]:
    """Refuse the values of a regression: hardly two samples would be of one class."""
    if values.dtype.kind == "f" and (values != np.floor(values)).any() and len(np.unique(values)) > len(values) / 2:
        raise ValueError(
            f"labels must be classes, got {len(np.unique(values))} different values among {len(values)} samples, such "
            f"as {values[0]:.6g}: targets of a regression. Use shards or iid, or give classes such as np.digitize(...)."
        )
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


def _log_mixture(alpha: float, mean: NDArray[Any], generator: np.random.Generator) -> NDArray[np.float64]:
    """alpha * log(q) of a q ~ Dirichlet(alpha * mean), up to a constant.

    For small alpha all of q but one is 0 in floating point, while its logarithms still tell what comes second. A gamma
    variate of shape a is one of shape a + 1 times U^(1/a), with U uniform.
    """
    gamma = generator.standard_gamma(alpha * mean + 1)
    uniform = 1 - generator.random(len(mean))  # in (0, 1]
    logs: NDArray[np.float64] = alpha * np.log(gamma) + np.log(uniform) / mean
    return logs


def _draw(
    size: int, alpha: float, mixture: NDArray[np.float64], stock: Indices, generator: np.random.Generator
) -> Indices:
    """Draw `size` samples by class from a `_log_mixture` without replacement: counts per class, at most `stock`."""
    taken = np.zeros_like(stock)
    while size > taken.sum():
        left = taken < stock
        with np.errstate(over="ignore"):  # to -inf
            weights = np.exp((mixture - mixture[left].max()) / alpha, where=left, out=np.zeros(len(stock)))
        drawn = generator.multinomial(size - taken.sum(), weights / weights.sum())
        taken += np.minimum(drawn, stock - taken)
    return taken


def _joined(parts: list[list[Indices]]) -> list[Indices]:
    return [np.sort(np.concatenate(part)).astype(np.int64, copy=False) for part in parts]
