"""Communication graphs: who talks to whom, and with which weight each agent takes up what it receives.

A topology is an immutable value. It is bound to a number of agents (`Ring(5)`), or left open (`Ring()`) until
`bind(agents)` gives it the number of the run. Every other quantity derives from the edges.

A new topology is a subclass with one method; `directed = True` in the class lets each edge go one way only:

    class Hub(Topology):
        def edges(self, agents):
            return [(0, rank) for rank in range(1, agents)]

A time-varying one also says which graph a step has. Its `edges` are those of all steps together; they must connect the
agents, while one step alone may leave some without neighbors:

    class Alternating(Topology):
        def edges(self, agents):
            return [(rank, rank + 1) for rank in range(agents - 1)]

        def at(self, step):
            return Pairs(self.agents, step % 2)

    @dataclass(frozen=True)
    class Pairs(Topology):
        first: int = 0

        def edges(self, agents):
            return [(rank, rank + 1) for rank in range(self.first, agents - 1, 2)]

Other weights than the default ones are a matrix, float64 `[N, N]`, with weights on the diagonal and on edges only, and
rows and columns that sum to 1. `FromMatrix` takes a given one; here the agents of a ring keep more of their own:

    class LazyRing(Ring):
        def mixing_matrix(self):
            return (np.eye(self.agents) + super().mixing_matrix()) / 2

A run checks all this when it binds the topology.
"""

from cga_lightning.names import lookup
from cga_lightning.topology.base import Topology
from cga_lightning.topology.base_graph import BaseGraph
from cga_lightning.topology.directed import DirectedRing, OnePeerExponential
from cga_lightning.topology.matrix import FromMatrix
from cga_lightning.topology.tree import SpanningTree, spanning_tree
from cga_lightning.topology.undirected import (
    Bipartite,
    Complete,
    ErdosRenyi,
    Exponential,
    Hypercube,
    Ring,
    SmallWorld,
    Star,
    Torus,
    Tree,
)

__all__ = [
    "TOPOLOGIES",
    "BaseGraph",
    "Bipartite",
    "Complete",
    "DirectedRing",
    "ErdosRenyi",
    "Exponential",
    "FromMatrix",
    "OnePeerExponential",
    "Hypercube",
    "Ring",
    "SmallWorld",
    "SpanningTree",
    "Star",
    "Topology",
    "Torus",
    "Tree",
    "from_name",
    "spanning_tree",
]

TOPOLOGIES: dict[str, type[Topology]] = {
    "ring": Ring,
    "complete": Complete,
    "bipartite": Bipartite,
    "torus": Torus,
    "exponential": Exponential,
    "erdos_renyi": ErdosRenyi,
    "one_peer_exponential": OnePeerExponential,
    "directed_ring": DirectedRing,
    "star": Star,
    "tree": Tree,
    "hypercube": Hypercube,
    "small_world": SmallWorld,
    "base_graph": BaseGraph,
}


def from_name(name: str) -> Topology:
    """Return the unbound topology of that name, with its default settings.

    Raises:
        ValueError: no topology has that name.
    """
    return lookup("topology", TOPOLOGIES, name)()
