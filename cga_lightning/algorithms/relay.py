"""Sums that are relayed along a spanning tree."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence

from torch import Tensor

from cga_lightning.algorithms.compressed import compressor_of
from cga_lightning.algorithms.differences import differences
from cga_lightning.compression import Compressor
from cga_lightning.core.agent import Agent
from cga_lightning.core.algorithm import Algorithm, Exchange, Messages, Step
from cga_lightning.topology import SpanningTree, Topology, spanning_tree


class RelaySGD(Algorithm):
    r"""Step, then relay: every model reaches every agent along a spanning tree, each with the same weight.

    With \psi_i the model of agent i after its optimizer step, T(i) its neighbors in the tree, and m_{i \to k} one sum
    per directed edge of the tree, every step makes h rounds of

        m_{i \to k} = \psi_i + \sum_{l \in T(i) \setminus k} m_{l \to i}    to every k \in T(i),

    and then  x_i = (\psi_i + \sum_{l \in T(i)} m_{l \to i}) / N.  The sums start as the number of agents behind an edge
    times x_i. So every \psi_l counts 1/N in every x_i, the later the farther it comes: ceil(distance / h) - 1 steps. At
    rest all x_i are the same, hence the steps of the optimizers sum to zero: the optimum of the sum of losses, for any
    tree and h, however the data differ. With h of at least the diameter nothing is late.

    With `gradients` the same relay, from sums of zero, first carries the gradients g_i, and the optimizer steps along

        (g_i + \sum_{l \in T(i)} m_{l \to i}) / N.

    An optimizer that is not linear in the gradient, such as Adam, needs that: a mean of its steps along each agent's
    own gradient is not its step along the mean gradient. "relay" is `RelaySGD(hops=3, gradients=True)`.

    The tree is the same for all, see `spanning_tree`: the topology must be undirected, connected and fixed. In it an
    agent writes to fewer neighbors than in the topology. Not inside `QuasiGlobalMomentum`: use the optimizer's
    momentum.

    Args:
        hops: h, the rounds of messages in a step.
        gradients: relay the gradients too, before the optimizer step.
        compressor: sends the compressed differences of the sums, as `Compressed` does; an object, or a name for one
            with its defaults.
        weights: how much each agent counts, such as the number of its samples, N values; all the same if None. \psi_i,
            g_i and N are then w_i \psi_i, w_i g_i and \sum_l w_l.

    Raises:
        ValueError: for less than one hop, an unknown name of a compressor, or weights that are negative, not finite or
            all zero.
        TypeError: for a compressor that is neither a name nor a `Compressor`.

    Source: Vogels et al., "RelaySum for Decentralized Deep Learning on Heterogeneous Data", NeurIPS 2021, Algorithm 1,
    which is `RelaySGD()`.
    """

    graphs = "fixed"

    def __init__(
        self,
        hops: int = 1,
        gradients: bool = False,
        compressor: Compressor | str | None = None,
        *,
        weights: Sequence[float] | None = None,
    ) -> None:
        if isinstance(hops, bool) or not isinstance(hops, int) or hops < 1:
            raise ValueError(f"RelaySGD(hops=...) must be a whole number of at least 1, got {hops!r}.")
        self.hops = hops
        self.gradients = gradients
        self.compressor = compressor_of(compressor)
        self.weights = None if weights is None else _checked(weights)

    @property
    def exchanges(self) -> tuple[str, ...]:  # type: ignore[override]
        """A round of messages for every hop."""
        return ("gradients",) * self.hops * self.gradients + ("models",) * self.hops

    @property
    def averages_models_only(self) -> bool:  # type: ignore[override]
        """Whether the optimizer steps along the own gradient."""
        return not self.gradients

    def check(self, topology: Topology) -> None:
        """Refuse a topology without a spanning tree that stays, and weights for another number of agents."""
        super().check(topology)
        spanning_tree(topology)
        if self.weights is not None and len(self.weights) != topology.agents:
            raise ValueError(
                f"RelaySGD(weights=...) must have one weight per agent, got {len(self.weights)} for {topology!r}."
            )

    def step(self, agent: Agent) -> Step:
        """Start the sums where there are none for this tree; then the gradients, if they are relayed."""
        tree = spanning_tree(agent.topology)
        if agent.state.get("tree") != list(tree.parents):
            self._start(agent, tree)
        if self.gradients:
            agent.grad = yield from self._relayed(agent, "gradients", agent.grad)

    def after_step(self, agent: Agent) -> Step:
        """Relay the models."""
        agent.params = yield from self._relayed(agent, "models", agent.params)

    def _start(self, agent: Agent, tree: SpanningTree) -> None:
        """On another tree sums start anew, and both ends of its edges without replicas."""
        beyond = tree.beyond(agent.rank, self._weights(agent))
        agent.state.clear()
        agent.state["tree"] = list(tree.parents)
        agent.state["sums"] = {"models": {rank: weight * agent.params for rank, weight in beyond.items()}}
        if self.gradients:
            agent.state["sums"]["gradients"] = {rank: agent.params.new_zeros(agent.params.shape) for rank in beyond}

    def _relayed(self, agent: Agent, name: str, own: Tensor) -> Generator[Exchange, Messages, Tensor]:
        """The mean over all agents of `own` `[d]`, of each as far as it has come."""
        weights = self._weights(agent)
        own = own if weights[agent.rank] == 1 else own * weights[agent.rank]
        received: Messages = agent.state["sums"][name]
        for _ in range(self.hops):
            outbox, _ = _sums(own, received)
            received = yield from differences(agent, name, outbox, self.compressor)
        agent.state["sums"] = agent.state["sums"] | {name: {rank: m.clone() for rank, m in received.items()}}
        return _sums(own, received)[1] / sum(weights)

    def _weights(self, agent: Agent) -> Sequence[float]:
        return self.weights or (1.0,) * (agent.topology.agents or 0)


def _sums(own: Tensor, received: Mapping[int, Tensor]) -> tuple[dict[int, Tensor], Tensor]:
    """By rank: the sum of `own` and of all that was received from others than that one; and the sum of all.

    Nothing is subtracted, which would leave the rounding of the whole sum in every part.
    """
    ranks, without, total = sorted(received), {}, own
    for rank in ranks:
        without[rank] = total
        total = total + received[rank]
    later: Tensor | None = None
    for rank in reversed(ranks):
        without[rank] = without[rank] if later is None else without[rank] + later
        later = received[rank] if later is None else later + received[rank]
    return without, total


def _checked(weights: Sequence[float]) -> tuple[float, ...]:
    """As a mean of 1, so that sums are as large as without weights."""
    values = [float(weight) for weight in weights]
    total = sum(values)
    if not all(0 <= value < float("inf") for value in values) or not 0 < total < float("inf"):
        raise ValueError(f"RelaySGD(weights=...) must be finite, at least 0, and not all 0, got {list(weights)!r}.")
    return tuple(value * len(values) / total for value in values)
