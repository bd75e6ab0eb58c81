"""Graphs that tests draw."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from cga_lightning import FromMatrix, Topology


@st.composite
def connected(draw: st.DrawFn, most: int = 7) -> Topology:
    """Any connected undirected graph of 2 to `most` agents: a tree over them in any order, and further edges."""
    agents = draw(st.integers(2, most))
    order = draw(st.permutations(range(agents)))
    tree = [(order[i], order[draw(st.integers(0, i - 1))]) for i in range(1, agents)]
    ranks = st.integers(0, agents - 1)
    further = draw(st.lists(st.tuples(ranks, ranks).filter(lambda pair: pair[0] != pair[1]), max_size=agents))
    adjacency = np.zeros((agents, agents))
    for first, second in tree + further:
        adjacency[first, second] = adjacency[second, first] = 1
    return FromMatrix(adjacency)
