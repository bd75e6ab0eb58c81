"""Communication graphs: who talks to whom, and with which weight each agent takes up what it receives.

A topology is an immutable value. It is bound to a number of agents (``Ring(5)``), or left open (``Ring()``)
until ``bind(agents)`` gives it the number of the run. Every other quantity derives from the edges.

A new topology is one subclass with one method::

    class Star(Topology):
        def edges(self, agents):
            return [(0, rank) for rank in range(1, agents)]
"""

from cga_lightning.topology.base import Topology
from cga_lightning.topology.directed import DirectedRing, OnePeerExponential
from cga_lightning.topology.matrix import FromMatrix
from cga_lightning.topology.undirected import Bipartite, Complete, ErdosRenyi, Exponential, Ring, Torus

__all__ = [
    "TOPOLOGIES",
    "Bipartite",
    "Complete",
    "DirectedRing",
    "ErdosRenyi",
    "Exponential",
    "FromMatrix",
    "OnePeerExponential",
    "Ring",
    "Topology",
    "Torus",
    "from_name",
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
}


def from_name(name: str) -> Topology:
    """Return the unbound topology of that name, with its default settings.

    Raises:
        ValueError: no topology has that name.
    """
    if name not in TOPOLOGIES:
        raise ValueError(f"Unknown topology {name!r}; known: {', '.join(TOPOLOGIES)}, or pass a Topology object.")
    return TOPOLOGIES[name]()
