"""Partitions: which samples belong to which agent, from all the same to one class each.

Every partition takes the labels of n samples, see `classes_of`, and returns one sorted int64 index array per agent. The
arrays are disjoint, cover all n samples, and none is empty. Equal arguments give equal partitions, and no global random
state is touched. Each raises a ValueError when the samples cannot be shared out like that.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cga_lightning.classes import classes_of, repeated
from cga_lightning.names import lookup

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Indices = NDArray[np.int64]


def by_label(labels: ArrayLike, agents: int, seed: int = 0) -> list[Indices]:
    """Give each agent whole classes: class c goes to agent c mod N (the CGA experiments).

    With more agents than classes, agent j holds class j mod C, and the agents of one class share its samples evenly
    (`seed` draws who gets which).
    """
    values = repeated(_labels(labels, agents))
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
    count = _count(labels, agents)
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
    values = repeated(_labels(labels, agents))
    _check_alpha(alpha)
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


def quantity_skew(labels: ArrayLike | int, agents: int, alpha: float = 0.5, seed: int = 0) -> list[Indices]:
    """Give agents very different numbers of samples, drawn at random: shares ~ Dirichlet(alpha, ..., alpha).

    Each keeps at least one sample. Takes any labels, or just their number n. Small `alpha`: one agent has almost all;
    large: equal numbers. The quantity skew of Li et al. 2022 (NIID-Bench).
    """
    count = _count(labels, agents)
    _check_alpha(alpha)
    generator = np.random.default_rng(seed)
    order = generator.permutation(count)
    shares = generator.dirichlet(np.full(agents, alpha))
    ends = np.round(np.cumsum(shares[:-1]) * (count - agents)).astype(np.int64) + np.arange(1, agents)
    return [np.sort(part) for part in np.split(order, ends)]


def pathological(labels: ArrayLike, agents: int, classes_per_agent: int | None = None, seed: int = 0) -> list[Indices]:
    """Give each agent samples of that many classes and no others (#C = k of Li et al. 2022).

    Every class has an owner, and as many owners as the others, up to one; these share its samples evenly. As the
    `PathologicalPartitioner` of flwr-datasets with `num_classes_per_partition`, but that no class is left out.

    Args:
        labels, agents, seed: as of all partitions.
        classes_per_agent: 2 if None, or more if that many agents could not own all classes otherwise.
    """
    values = repeated(_labels(labels, agents))
    generator = np.random.default_rng(seed)
    classes = _by_class(values, generator)
    fewest = -(-len(classes) // agents)
    if classes_per_agent is None:
        classes_per_agent = min(max(2, fewest), len(classes))
    if not 1 <= classes_per_agent <= len(classes) <= agents * classes_per_agent:
        raise ValueError(
            f"{agents} agents with {classes_per_agent} classes each cannot share out {len(classes)} classes: "
            f"classes_per_agent must be from {fewest} to {len(classes)}."
        )
    owners = _owners(agents, classes_per_agent, len(classes), generator)
    parts: list[list[Indices]] = [[] for _ in range(agents)]
    for samples, of_class in zip(classes, owners, strict=True):
        _check_enough(len(samples), len(of_class), f"class {values[samples[0]]}")
        for owner, part in zip(of_class, np.array_split(samples, len(of_class)), strict=True):
            parts[owner].append(part)
    return _joined(parts)


def natural_id(labels: ArrayLike, agents: int, seed: int = 0) -> list[Indices]:
    """Keep together what has the same id: a user, a device, a hospital; `labels` are these ids.

    With as many agents as ids, each agent has one, in their order. With fewer, whole ids are dealt out so that the
    numbers of samples come close: the largest first, each to the agent that has fewest so far; `seed` decides between
    equal ones. As the `NaturalIdPartitioner` of flwr-datasets, whose `partition_by` names the column:
    `PartitionedDataModule(train, labels="hospital", partition="natural_id")`.
    """
    values = _labels(labels, agents)
    generator = np.random.default_rng(seed)
    ids = _by_class(values, generator)
    if len(ids) < agents:
        raise ValueError(f"{agents} agents cannot have one id each of {len(ids)}; use fewer agents, or another column.")
    if len(ids) == agents:
        return _joined([[samples] for samples in ids])
    parts: list[list[Indices]] = [[] for _ in range(agents)]
    sizes, order = np.zeros(agents, dtype=np.int64), generator.permutation(len(ids))
    for one in sorted(order.tolist(), key=lambda one: -len(ids[one])):
        poorest = int(sizes.argmin())
        parts[poorest].append(ids[one])
        sizes[poorest] += len(ids[one])
    return _joined(parts)


Partition = Callable[..., list[Indices]]

PARTITIONS: dict[str, Partition] = {
    "by_label": by_label,
    "iid": iid,
    "shards": shards,
    "dirichlet": dirichlet,
    "quantity_skew": quantity_skew,
    "pathological": pathological,
    "natural_id": natural_id,
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
    return partition not in (iid, quantity_skew)


def _labels(labels: Any, agents: int) -> NDArray[Any]:
    _check_agents(agents)
    values = classes_of(labels)
    _check_enough(len(values), agents, "the data")
    return values


def counts(labels: ArrayLike, parts: Sequence[ArrayLike]) -> tuple[list[Any], Indices]:
    """The classes there are, sorted, and how many samples of each every part has, int64 `[N, C]`."""
    classes, values = np.unique(classes_of(labels), return_inverse=True)
    return classes.tolist(), np.stack([np.bincount(values[np.asarray(part)], minlength=len(classes)) for part in parts])


def plot(labels: ArrayLike, parts: Sequence[ArrayLike]) -> "Figure":
    """Draw what every agent has: a heat map of samples by class, and bars of samples in all.

    Args:
        labels: of the n samples.
        parts: indices into them, one array per agent.

    Returns:
        A figure of matplotlib: `figure.savefig("parts.png")`.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("partition.plot needs matplotlib: pip install 'cga-lightning[tools]'.") from error
    classes, table = counts(labels, parts)
    height = 1.5 + 0.25 * len(table)
    figure = Figure(figsize=(7 + 0.2 * len(classes), height), layout="constrained")
    heat, bars = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    image = heat.imshow(table, aspect="auto", cmap="Blues", vmin=0)
    heat.set(xlabel="class", ylabel="agent", xticks=range(len(classes)), yticks=range(len(table)))
    heat.set_xticklabels([str(name) for name in classes], rotation=90 if len(classes) > 12 else 0)
    figure.colorbar(image, ax=heat, label="samples")
    bars.barh(range(len(table)), table.sum(axis=1))
    bars.set(xlabel="samples in all")
    return figure


def _count(labels: ArrayLike | int, agents: int) -> int:
    """The number n of samples, of which only that is asked."""
    count = int(labels) if isinstance(labels, (int, np.integer)) else len(labels)  # type: ignore[arg-type]
    _check_agents(agents)
    _check_enough(count, agents, "the data")
    return count


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < np.inf:
        raise ValueError(f"alpha must be positive and finite, got {alpha}; use iid for the limit of large alpha.")


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


def _owners(agents: int, each: int, classes: int, generator: np.random.Generator) -> list[list[int]]:
    """Which agents own each class: `each` different classes per agent, dealt out from one row of all in turn."""
    row, order = generator.permutation(classes), generator.permutation(agents)
    owners: list[list[int]] = [[] for _ in range(classes)]
    for place in range(agents * each):
        owners[row[place % classes]].append(int(order[place // each]))
    return owners


def _joined(parts: list[list[Indices]]) -> list[Indices]:
    return [np.sort(np.concatenate(part)).astype(np.int64, copy=False) for part in parts]
