"""Gossip that does nothing but bring agents together."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from cga_lightning.core.algorithm import Exchange, Messages
from cga_lightning.topology import Topology

Averaging = Generator[Exchange, Messages, Tensor]


def bring_together(x: Tensor, rank: int, topology: Topology, roots: Sequence[float]) -> Averaging:
    """One round x^j <- (sum_l pi_jl x^l - r x^j) / (1 - r) for each r of `roots`; 0 is a plain round of gossip.

    What all agents have alike stays that value to the bit.

    Args:
        x: that of the agent `rank`, of any floating dtype and shape; stays as it is.
        rank: the agent.
        topology: whose edges and weights are used.
        roots: see `topology.polynomial.averaging_roots`.

    Returns:
        A tensor of its own.
    """
    weights, senders = topology.weights(rank), topology.in_neighbors(rank)
    x = x.clone()
    for root in roots:
        received = yield Exchange(dict.fromkeys(topology.out_neighbors(rank), x), senders, x)
        change = torch.zeros_like(x)
        for sender in senders:
            change.add_(torch.where(received[sender] == x, 0.0, received[sender] - x), alpha=weights[sender])
        x = x.add(change, alpha=1 / (1 - root))
    return x
