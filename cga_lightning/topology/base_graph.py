"""Base-(k+1) graphs: exact averages of any number of agents after a few steps with few neighbors each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import zip_longest
from math import prod

import numpy as np

from cga_lightning.topology.base import Topology
from cga_lightning.topology.links import Edge
from cga_lightning.topology.matrix import FromMatrix

Links = dict[Edge, float]
"""The weights of the edges of one step, each edge once."""


@dataclass(frozen=True, repr=False)
class BaseGraph(Topology):
    """Time-varying: at most `k` neighbors a step, and the exact average after one period, for any number of agents.

    Agents are divided into parts by the digits of N in base k + 1. First each part averages in itself; then part by
    part, with all smaller ones, with weights after which all have the same mean; then each in itself again. Where N is
    a product of numbers up to k + 1, one averaging along each of these does: the dimensions of a hypercube, if N is a
    power of two. A period has O(log N / log(k + 1)) steps, some of which leave agents without a neighbor.

    Args:
        agents: number N of agents.
        k: the most neighbors in one step.

    Raises:
        ValueError: `k` is less than 1.

    Source: Takezawa et al., "Beyond Exponential Graph: Communication-Efficient Topologies for Decentralized Learning
    via Finite-Time Convergence", NeurIPS 2023, Algorithms 1 to 3.
    """

    k: int = 1

    def edges(self, agents: int) -> Iterable[Edge]:
        """Those of all steps of a period."""
        if self.k < 1:
            raise ValueError(f"BaseGraph needs k of at least 1, got k={self.k}.")
        return {edge for links in shortest_period(agents, self.k) for edge in links}

    def at(self, step: int) -> Topology:
        """Return the graph of that step; they repeat after one period."""
        return self._period[step % len(self._period)]

    @property
    def phases(self) -> tuple[Topology, ...]:
        """The graphs of one period."""
        return self._period

    @cached_property
    def _period(self) -> tuple[Topology, ...]:
        agents = self._bound()
        return tuple(FromMatrix(_matrix(agents, links)) for links in shortest_period(agents, self.k))


@lru_cache(maxsize=32)
def shortest_period(agents: int, k: int) -> tuple[Links, ...]:
    """The edges of every step and their weights: over all agents at once, or in equal groups and then between them."""
    smooth = prod(_factors(agents, k)[0])
    group = agents // smooth
    whole = tuple(by_digits(range(agents), k))
    groups = [list(by_digits(range(first, first + group), k)) for first in range(0, agents, group)]
    between = [list(hyper_hypercube(range(first, agents, group), k)) for first in range(group)]
    grouped = (*_side_by_side(groups), *_side_by_side(between))
    return min(whole, grouped, key=len)


def by_digits(ranks: Sequence[int], k: int) -> Iterator[Links]:
    """The steps of a simple Base-(k+1) graph among these ranks."""
    parts = [_cut(ranks, start, digit, size) for start, digit, size in _digits(len(ranks), k)]
    yield from _side_by_side([list(hyper_hypercube([rank for block in part for rank in block], k)) for part in parts])
    if len(parts) > 1:
        yield from _side_by_side([list(_spread(place, parts, k)) for place in range(len(parts))])


def _spread(place: int, parts: Sequence[Sequence[Sequence[int]]], k: int) -> Iterator[Links]:
    """The steps that begin with the part at that place: wait, mix with all smaller parts, average every block."""
    part = parts[place]
    smaller = [rank for other in parts[place + 1 :] for block in other for rank in block]
    if smaller:
        yield from ({} for _ in range(place))
        weight = len(part[0]) / (len(part) * len(part[0]) + len(smaller))
        yield {(rank, block[i]): weight for block in part for i, rank in enumerate(smaller)}
        yield from _side_by_side([list(hyper_hypercube(block, k)) for block in part])


def hyper_hypercube(ranks: Sequence[int], k: int) -> Iterator[Links]:
    """The steps of a k-peer hyper-hypercube: those average whose places differ in one digit of a mixed radix."""
    factors, rest = _factors(len(ranks), k)
    assert rest == 1, f"{len(ranks)} agents do not factor into numbers up to {k + 1}"
    stride = 1
    for factor in factors:
        places = [p for p in range(len(ranks)) if (p // stride) % factor == 0]
        cliques = [[ranks[p + digit * stride] for digit in range(factor)] for p in places]
        yield {(a, b): 1 / factor for clique in cliques for a in clique for b in clique if a < b}
        stride *= factor


def _side_by_side(runs: Sequence[Sequence[Links]]) -> list[Links]:
    """One sequence of steps from several among different agents."""
    steps = zip_longest(*runs, fillvalue={})
    return [{edge: weight for links in step for edge, weight in links.items()} for step in steps]


def _digits(number: int, k: int) -> Iterator[tuple[int, int, int]]:
    """Of the number in base k + 1, from the largest: what is taken before, the digit, and its power; zeros left out."""
    taken, power = 0, 1
    while power * (k + 1) <= number:
        power *= k + 1
    while power:
        digit = (number - taken) // power
        if digit:
            yield taken, digit, power
        taken, power = taken + digit * power, power // (k + 1)


def _cut(ranks: Sequence[int], start: int, blocks: int, size: int) -> list[Sequence[int]]:
    return [ranks[start + i * size : start + (i + 1) * size] for i in range(blocks)]


@lru_cache(maxsize=256)
def _factors(number: int, k: int) -> tuple[tuple[int, ...], int]:
    """Few factors of the number, each from 2 to k + 1, and what is left of it: prime factors above k + 1."""
    options = [(factor, *_factors(number // factor, k)) for factor in range(2, k + 2) if number % factor == 0]
    if not options:
        return (), number
    factor, others, rest = min(options, key=lambda option: len(option[1]))
    return (factor, *others), rest


def _matrix(agents: int, links: Links) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    matrix = np.zeros((agents, agents))
    for (first, second), weight in links.items():
        matrix[first, second] = matrix[second, first] = weight
    np.fill_diagonal(matrix, 1 - matrix.sum(axis=1))
    return matrix
