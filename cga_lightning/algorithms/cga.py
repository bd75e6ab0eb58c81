"""Cross-Gradient Aggregation."""

from __future__ import annotations

from collections.abc import Generator
from typing import Literal

import torch
from torch import Tensor

from cga_lightning.algorithms.compressed import compressed, compressor_of
from cga_lightning.compression import Compressor, ErrorFeedback
from cga_lightning.core.agent import Agent
from cga_lightning.core.algorithm import Algorithm, Graphs, LazyMessages, Messages, Step
from cga_lightning.names import check_choice
from cga_lightning.ops import MOST_ROWS, Status, project_


class CGA(Algorithm):
    """Step along the direction closest to the own gradient that hurts no neighbor.

    With g^jj the own gradient of agent j and g^jl = grad F_l(x^j) the cross-gradient that neighbor l returns for it,
    the direction is g^jj + sum_l v_l g^jl, where v solves

        min_{v >= margin}  1/2 v' G G' v + (G g^jj)' v,      G = rows g^jl.

    That is the projection of g^jj + margin * sum_l g^jl onto the cone of directions that have a non-negative inner
    product with every cross-gradient.

    As long as gradients conflict, the mean model keeps a bias, since no agent knows the gradients of those further
    away than its neighbors. A correction takes it off, at the same bytes and gradients, one vector `[d]` of memory
    ("exact_diffusion") or one for each neighbor ("tracking"):

    - "tracking": the sender adds what it knows to the change of the cross-gradient, and the mean of all messages is
      what agent j knows, and its direction,

          m_t^{l->j} = y_{t-1}^l + grad F_l(x_t^j) - grad F_l(x_{t-1}^j),    y_t^j = sum_l pi_jl m_t^{l->j},

      l = j included. The sum of all y^j is that of all pi_jl grad F_l(x^j), so the agents come to rest at the optimum
      of the sum of losses and nowhere else. No program is solved: trackers do not conflict once they agree. The
      momentum of the optimizer adds up with that of the trackers and must be 0: use `torch.optim.SGD(lr)` in
      `QuasiGlobalMomentum(CGA(correction="tracking"), mu=0)`, or with beta=0.95 too.
    - "exact_diffusion": with phi^j the model that is sent, at which gradients are taken, and u^j the projected
      direction as above,

          x_t^j = (phi_t^j + sum_l pi_jl phi_t^l) / 2,    psi_t^j = x_t^j - lr * u_t^j,
          phi_{t+1}^j = psi_t^j + x_t^j - psi_{t-1}^j.

      At rest all agents have one model, and their directions sum up to 0; what bias is left is that of the projection.

    Args:
        margin: the lower bound of v, at least 0: how much of every cross-gradient is added before projecting.
        weights: "uniform" takes the gradients as they are; "mixing" scales each by its mixing weight pi_jl first, so
            that margin=1 projects the weighted mean of all gradients.
        scope: "model" solves one problem for all parameters; "layer" one for each parameter tensor.
        eps: relative ridge of the quadratic program; the operator's default for the dtype if None.
        compressor: sends the cross-gradients in fewer bytes; an object, or a name for one with its defaults. CompCGA
            is `CGA(compressor="scaled_sign")`.
        correction: None, "tracking" or "exact_diffusion". Both need a graph that does not vary in time.

    Raises:
        ValueError: for a negative margin or eps, or an unknown weights, scope, correction or name of a compressor; for
            settings of the quadratic program with "tracking", which has none, or a compressor without error memory.
        TypeError: for a compressor that is neither a name nor a `Compressor`.

    Source: Esfandiari et al., "Cross-Gradient Aggregation for Decentralized Learning from Non-IID Data", ICML 2021
    (PMLR 139:3036-3046), Algorithm 1. `CGA(margin=0, weights="uniform")` is its quadratic program.
    The corrections are gradient tracking (Nedic, Olshevsky and Shi, SIAM Journal on Optimization 27(4), 2017) and exact
    diffusion (Yuan, Ying, Zhao and Sayed, IEEE Transactions on Signal Processing 67(3), 2019), here of cross-gradients.
    """

    exchanges = ("models", "cross_gradients")

    def __init__(
        self,
        *,
        margin: float = 1.0,
        weights: Literal["uniform", "mixing"] = "mixing",
        scope: Literal["model", "layer"] = "model",
        eps: float | None = None,
        compressor: Compressor | str | None = None,
        correction: Literal["tracking", "exact_diffusion"] | None = None,
    ) -> None:
        for name, value in (("margin", margin), ("eps", eps)):
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"CGA({name}=...) must be a finite number of at least 0, got {value!r}.")
        for name, choice, allowed in (("weights", weights, _WEIGHTS), ("scope", scope, _SCOPES)):
            check_choice(f"CGA({name}=...)", choice, allowed)
        if correction is not None:
            check_choice("CGA(correction=...)", correction, ("tracking", "exact_diffusion"))
        if correction == "tracking" and (margin, weights, scope, eps) != (1.0, "mixing", "model", None):
            raise ValueError(
                'CGA(correction="tracking") steps along the mean of what it hears, without a quadratic program, so '
                "margin, weights, scope and eps have no meaning; leave them out."
            )
        self.margin = margin
        self.weights = weights
        self.scope = scope
        self.eps = eps
        self.compressor = compressor_of(compressor)
        self.correction = correction
        if correction == "tracking":
            _check_remembers(self.compressor)

    @classmethod
    def reference(cls) -> CGA:
        """The rule of the published code: gradients scaled by pi, v >= 0.5, one program per parameter tensor."""
        return cls(margin=0.5, weights="mixing", scope="layer")

    @property
    def graphs(self) -> Graphs:  # type: ignore[override]
        """A correction compares with the last step."""
        return "undirected" if self.correction is None else "fixed"

    @property
    def most_neighbors(self) -> int | None:  # type: ignore[override]
        """Trackers are not projected."""
        return None if self.correction == "tracking" else MOST_ROWS

    @property
    def takes_momentum(self) -> bool:  # type: ignore[override]
        """Trackers have one of their own."""
        return self.correction != "tracking"

    def step(self, agent: Agent) -> Step:
        """Exchange models, return cross-gradients, project, mix."""
        models = yield {rank: agent.params for rank in agent.neighbors}
        gradients = LazyMessages(models, lambda rank: agent.gradient(at=models[rank]), like=agent.params)
        if self.correction == "tracking":
            yield from self._track(agent, gradients)
        else:
            cross_gradients = yield from compressed(agent, "cross_gradients", gradients, self.compressor)
            if cross_gradients:  # an agent that has nobody at this step goes along its own gradient
                self._project(agent, cross_gradients)
        phi = agent.params
        agent.mix(models)
        if self.correction == "exact_diffusion":
            agent.params = agent.params.lerp(phi, 0.5)
            agent.state["x"] = agent.params.clone()

    def after_step(self, agent: Agent) -> Step:
        """Exact diffusion takes back what the last steps have led the agents apart."""
        if self.correction == "exact_diffusion":
            psi, x = agent.params, agent.state.pop("x")
            last = agent.state.get("psi", x)
            agent.state["psi"] = psi.clone()
            agent.params = psi + x - last
        yield from ()

    def _track(self, agent: Agent, gradients: Messages) -> Generator[Messages, Messages, None]:
        """The tracker becomes the direction; a gradient that is not finite counts as unchanged."""
        zeros = torch.zeros_like(agent.params)
        tracker, last = agent.state.get("tracker", zeros), agent.state.get("last_gradients", {})
        now = {rank: _finite_or(last.get(rank, zeros), g) for rank, g in (*gradients.items(), (agent.rank, agent.grad))}
        news = {rank: tracker + gradient - last.get(rank, zeros) for rank, gradient in now.items()}
        own = news.pop(agent.rank)
        received = yield from compressed(agent, "cross_gradients", news, self.compressor)
        agent.state["tracker"], agent.state["last_gradients"] = agent.average(own, received), now
        agent.grad = agent.state["tracker"].clone()  # which clipping and scaling may change

    def _project(self, agent: Agent, cross_gradients: Messages) -> None:
        ranks = sorted(cross_gradients)
        rows = [cross_gradients[rank] for rank in ranks]
        weights = agent.weights if self.weights == "mixing" else dict.fromkeys((agent.rank, *ranks), 1.0)
        largest = max(weights.values())
        for rank, gradient in zip((agent.rank, *ranks), (agent.grad, *rows), strict=True):
            _scale(gradient, weights[rank] / largest)  # nothing to do on regular graphs
        offsets = agent.layout.offsets if self.scope == "layer" else None
        projection = project_(rows, agent.grad, margin=self.margin, offsets=offsets, eps=self.eps)
        _scale(agent.grad, largest)
        agent.diagnostics["conflicts"] = (projection.dual > self.margin).mean(dtype=torch.float64)
        agent.diagnostics["non_finite"] = (projection.status == Status.NON_FINITE).mean(dtype=torch.float64)


def _check_remembers(compressor: Compressor | None) -> None:
    if not (compressor is None or compressor.needs_feedback or isinstance(compressor, ErrorFeedback)):
        raise ValueError(
            f'CGA(correction="tracking") adds up what it hears, so the errors of {compressor!r} would add up too. Use '
            'one with an error memory, such as "scaled_sign" or "top_k", or ErrorFeedback(compressor).'
        )


def _finite_or(otherwise: Tensor, gradient: Tensor) -> Tensor:
    """A copy of the gradient, or of the other one where it is not finite."""
    return torch.where(gradient.isfinite().all(), gradient, otherwise)


def _scale(tensor: Tensor, factor: float) -> None:
    if abs(factor - 1) > 1e-12:  # where mixing weights are equal but for their rounding
        tensor.mul_(factor)


_WEIGHTS = ("uniform", "mixing")
_SCOPES = ("model", "layer")
