"""Methods that correct gossip by the last step: D2, exact diffusion, EXTRA."""

from __future__ import annotations

import torch
from torch import Tensor

from cga_lightning.core.agent import Agent
from cga_lightning.core.algorithm import Algorithm, Step, gossip
from cga_lightning.topology import Topology

LEAST_EIGENVALUE = -0.3
"""Of a mixing matrix with which D2 settles soon; below -1/3 it diverges."""


class _Corrected(Algorithm):
    """What such methods have in common."""

    exchanges = ("models",)
    graphs = "fixed"
    averages_models_only = True

    def check(self, topology: Topology) -> None:
        """Refuse a mixing matrix without real eigenvalues too."""
        super().check(topology)
        topology.eigenvalues()


class D2(_Corrected):
    """Adapt, take back what the last step has led the agents apart, combine: no bias from data that differ.

    With psi_t^j the model after the optimizer's step from x_t^j,

        psi_t^j = x_t^j - lr * grad F_j(x_t^j),    x_{t+1}^j = sum_l pi_jl (psi_t^l + x_t^l - psi_{t-1}^l),

    and psi_{-1}^j = x_0^j, all equal at the start. All agents come to rest at the optimum of the sum of losses, at the
    bytes of DPSGD and one gradient. Any optimizer will do: psi is wherever it has gone.

    With an eigenvalue of the mixing matrix below -1/3 the recursion diverges, and at it, as on a ring of an even number
    of agents, only the slopes of the losses let it settle. There every agent keeps a share s of its own, as little as
    needed: pi becomes (1 - s) pi + s I.

    Args:
        share: s, in [0, 1); chosen as above if None.

    Raises:
        ValueError: for a share out of range; for a mixing matrix that is not symmetric.

    Source: Tang et al., "D2: Decentralized Training over Decentralized Data", ICML 2018, Algorithm 1; for any share
    Alghunaim and Yuan, "A Unified and Refined Convergence Analysis for Non-Convex Decentralized Learning", IEEE
    Transactions on Signal Processing 70, 2022 (SUDA).
    """

    def __init__(self, *, share: float | None = None) -> None:
        if share is not None and not 0 <= share < 1:
            raise ValueError(f"{type(self).__name__}(share=...) must be in [0, 1), got {share}.")
        self.share = share

    def step(self, agent: Agent) -> Step:
        """No exchange: the optimizer steps from the own model along the own gradient."""
        yield from ()

    def after_step(self, agent: Agent) -> Step:
        """Correct what the optimizer has reached, and mix."""
        psi = agent.params
        phi = psi + agent.state["correction"] if "correction" in agent.state else psi
        received = yield gossip(agent, phi)
        agent.params = agent.average(phi, received).lerp_(phi, self._share(agent.topology))
        agent.state["correction"] = agent.params - psi

    def _share(self, topology: Topology) -> float:
        return share_needed(topology) if self.share is None else self.share


def share_needed(topology: Topology) -> float:
    """The least s with which (1 - s) W + s I has no eigenvalue below `LEAST_EIGENVALUE`."""
    least = float(topology.eigenvalues()[0])
    return max(0.0, (LEAST_EIGENVALUE - least) / (1 - least))


class ExactDiffusion(D2):
    """D2 in which every agent keeps half of its own: it settles for every symmetric mixing matrix.

        psi_t^j = x_t^j - lr * grad F_j(x_t^j),    phi_t^j = psi_t^j + x_t^j - psi_{t-1}^j,
        x_{t+1}^j = (phi_t^j + sum_l pi_jl phi_t^l) / 2.

    Source: Yuan, Ying, Zhao and Sayed, "Exact Diffusion for Distributed Optimization and Learning - Part I", IEEE
    Transactions on Signal Processing 67(3), 2019, Algorithm 1.
    """

    def __init__(self) -> None:
        super().__init__(share=0.5)

    def settings(self) -> dict[str, object]:
        """None: the share is what makes it exact diffusion."""
        return {}


class EXTRA(_Corrected):
    """Combine, then adapt, and take back the last step: as exact diffusion, in the order of DPSGD.

    With D_t^j = lr * grad F_j(x_t^j), or whatever the optimizer subtracts, and x_{-1}^j = x_0^j, all equal, D_{-1} = 0,

        x_{t+1}^j = z_t^j / 2 + sum_l pi_jl z_t^l / 2 + D_{t-1}^j - D_t^j,    z_t^j = 2 x_t^j - x_{t-1}^j.

    The models travel during the own pass. All agents come to rest at the optimum of the sum of losses; steps must be
    shorter than with exact diffusion.

    Source: Shi, Ling, Wu and Yin, "EXTRA: An Exact First-Order Algorithm for Decentralized Consensus Optimization",
    SIAM Journal on Optimization 25(2), 2015, (2.13) with W~ = (I + W) / 2.
    """

    def step(self, agent: Agent) -> Step:
        """Mix the models carried on, and take back the last step of the optimizer."""
        x, nothing = agent.params, torch.zeros_like(agent.params)
        z = x + agent.state.get("change", nothing)
        received = yield gossip(agent, z)
        mixed: Tensor = agent.average(z, received).lerp_(z, 0.5)
        agent.params = mixed + agent.state.get("taken", nothing)
        agent.state["start"], agent.state["before"] = x, agent.params.clone()

    def after_step(self, agent: Agent) -> Step:
        """Remember what the optimizer has subtracted, and how far the model has come."""
        agent.state["taken"] = agent.state.pop("before") - agent.params
        agent.state["change"] = agent.params - agent.state.pop("start")
        yield from ()
