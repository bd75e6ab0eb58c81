"""Global Update Tracking."""

from __future__ import annotations

from cga_lightning.core.agent import Agent
from cga_lightning.core.algorithm import Algorithm, Step, gossip
from cga_lightning.topology import Topology


class GUT(Algorithm):
    """Tracks how the neighbors' models have changed, which their models tell, so at the bytes of DPSGD.

    With w_t^j the mixed model, at which gradients are taken, and psi_t^j the model after the optimizer's step from it,

        psi_t^j = w_t^j - lr * grad F_j(w_t^j),    x_{t+1}^j = psi_t^j + mu * (w_t^j - psi_{t-1}^j),
        w_{t+1}^j = sum_l pi_jl x_{t+1}^l,

    and psi_{-1}^j = w_0^j. That is what the published code without momentum comes to, which writes it with
    y_t = (x_t - x_{t+1}) / lr, and delta_t for the part of y_t without mu. mu = 1 would be D2, mu = 0 is DPSGD in the
    order adapt, then combine: the bias from data that differ is that of DPSGD at the rate (1 - mu) lr.

    Args:
        mu: how much is tracked, in [0, 1): 0.9 in the published runs without momentum, 0.06 and less with it.

    Raises:
        ValueError: for mu out of range; for a mixing matrix with an eigenvalue of -1 / (1 + 2 mu) or below.

    Source: Aketi, Hashemi and Roy, "Global Update Tracking: A Decentralized Learning Algorithm for Heterogeneous Data",
    NeurIPS 2023, and its code.
    """

    exchanges = ("models",)
    graphs = "fixed"
    averages_models_only = True

    def __init__(self, *, mu: float = 0.9) -> None:
        if not 0 <= mu < 1:
            raise ValueError(f"GUT(mu=...) must be in [0, 1), got {mu}.")
        self.mu = mu

    def check(self, topology: Topology) -> None:
        """Refuse a mixing matrix with which the recursion diverges too."""
        super().check(topology)
        least = float(topology.eigenvalues()[0])
        if least * (1 + 2 * self.mu) <= -1:
            raise ValueError(
                f"{self!r} diverges on {topology!r}, whose mixing matrix has the eigenvalue {least:.3g}. Use mu below "
                f"{(-1 / least - 1) / 2:.2g}, or D2() or ExactDiffusion(), which go further."
            )

    def step(self, agent: Agent) -> Step:
        """No exchange: the optimizer steps from the mixed model along the own gradient there."""
        agent.state["mixed"] = agent.params.clone()
        yield from ()

    def after_step(self, agent: Agent) -> Step:
        """Go on as the neighbors have gone, and mix."""
        psi, mixed = agent.params, agent.state.pop("mixed")
        x = psi + self.mu * (mixed - agent.state.get("psi", mixed))
        agent.state["psi"] = psi.clone()
        models = yield gossip(agent, x)
        agent.params = agent.average(x, models)
