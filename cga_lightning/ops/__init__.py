"""The projection operator: the point closest to an agent's own gradient that no cross-gradient opposes.

With the K cross-gradients as rows G [K, d] and the own gradient g [d], the dual problem is

    min over v >= margin of  1/2 v'(GG')v + (Gg)'v,    and    g~ = g + G'v

(Esfandiari et al., "Cross-Gradient Aggregation for Decentralized Learning from Non-IID Data", ICML 2021).
It is the projection of `g + margin * sum(G)` onto `{u : Gu >= 0}`, so it always exists.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cga_lightning.ops import _checks
from cga_lightning.ops._checks import MOST_ROWS
from cga_lightning.ops._library import backend
from cga_lightning.ops._qp import Status

__all__ = ["MOST_ROWS", "Projection", "Status", "backend", "project", "project_"]


class Projection(NamedTuple):
    """What a projection returns.

    Attributes:
        gradient: the projected gradient g~ [d], of the dtype and device of the own gradient.
        dual: the weight v of every cross-gradient, [s, K] float64; v >= margin, but 0 for an excluded row.
            Where cross-gradients depend on each other linearly v is not unique; g~ is.
        status: [s] int32, see `Status`. 0: exact. 1: the solver met its iteration cap; g~ is its last feasible
            iterate. 2: rows with NaN or Inf were excluded; the rest was solved exactly.

    """

    gradient: Tensor
    dual: Tensor
    status: Tensor


def project(
    cross: Tensor | Sequence[Tensor],
    own: Tensor,
    *,
    margin: float = 0.0,
    offsets: Tensor | None = None,
    eps: float | None = None,
) -> Projection:
    """Project the own gradient onto the cone in which no cross-gradient opposes it.

    Args:
        cross: the K cross-gradients, [K, d] or a sequence of K tensors [d], 1 <= K <= `MOST_ROWS`; float32, float16,
            bfloat16 or float64, each row contiguous.
        own: the own gradient [d], of the same dtype and device. It is not changed.
        margin: lower bound h of v: h times every cross-gradient is added before the projection. It is not a
            tolerance. 0 projects the own gradient itself.
        offsets: segment bounds, int64 [s + 1] on the CPU, from 0 to d and never decreasing: an independent
            problem for `[offsets[i], offsets[i + 1])` each. Default: one segment.
        eps: ridge on the Gram matrix, relative to the squared norm of each row, so that the result does not
            depend on the scale of the gradients. It makes g~ a continuous function of nearly dependent
            cross-gradients. Default: 1e-6 for float32, 1e-4 for float16 and bfloat16, 1e-12 for float64. 0
            means none; below 1e-6 all products are formed in float64.

    Returns:
        The gradient, the dual variables and a status per segment. Data never raises: a cross-gradient with
        NaN or Inf in a segment is left out there (v = 0, status 2), and a segment whose own gradient has NaN
        or Inf stays as it is (v = 0, status 2). Row norms whose square leaves the range of float64 count as
        Inf or as zero.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: wrong shapes, devices, strides, offsets, margin or eps.

    The result is detached from the graph, and nothing waits for a CUDA device.

    """
    rows, bounds, margin, ridge = _checks.arguments("project", cross, own, margin, offsets, eps)
    return Projection(*torch.ops.cga_lightning.project(rows, own.detach(), bounds, margin, ridge))


def project_(
    cross: Tensor | Sequence[Tensor],
    own: Tensor,
    *,
    margin: float = 0.0,
    offsets: Tensor | None = None,
    eps: float | None = None,
) -> Projection:
    """Project in place: as `project`, but overwrite `own` [d] and return it as the gradient.

    Memory for a second gradient costs more than the whole projection. `own` must not share memory with `cross`.
    """
    rows, bounds, margin, ridge = _checks.arguments("project_", cross, own, margin, offsets, eps)
    return Projection(own, *torch.ops.cga_lightning.project_(rows, own.detach(), bounds, margin, ridge))
