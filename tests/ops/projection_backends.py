"""Every implementation of the projection, behind one signature: the tests run over this table."""

from collections.abc import Callable

import torch
from torch import Tensor

from cga_lightning.ops import Projection, _checks, _reference

Implementation = Callable[..., Projection]


def torch_reference(
    rows: list[Tensor],
    own: Tensor,
    *,
    margin: float = 0.0,
    offsets: Tensor | None = None,
    eps: float | None = None,
) -> Projection:
    """Plain torch, without the dispatcher; leaves ``own`` unchanged."""
    margin, ridge = _checks.scalars(margin, eps, own.dtype, "project")
    bounds = torch.tensor([0, own.numel()]) if offsets is None else offsets
    gradient = own.clone()
    return Projection(gradient, *_reference.project_(rows, gradient, bounds, margin, ridge))


IMPLEMENTATIONS: dict[str, Implementation] = {"torch": torch_reference}
