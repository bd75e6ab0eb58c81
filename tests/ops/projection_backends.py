"""Every implementation of the projection, behind one signature: the tests run over this table."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cga_lightning.ops import Projection, _checks, _library, _reference


class Implementation(NamedTuple):
    """``project_(rows, own, offsets, margin, ridge) -> (dual, status)``, in place, and
    ``gram(rows, own, offsets) -> [s, K + 1, K + 1]``, on tensors that were checked.
    """

    project_: Callable[..., tuple[Tensor, Tensor]]
    gram: Callable[..., Tensor]

    def __call__(
        self,
        rows: list[Tensor],
        own: Tensor,
        *,
        margin: float = 0.0,
        offsets: Tensor | None = None,
        eps: float | None = None,
    ) -> Projection:
        """Project with the defaults of the public function; ``own`` is left as it is."""
        margin, ridge = _checks.scalars("project", margin, eps, own.dtype)
        gradient = own.clone()
        bounds = _checks.bounds("project", offsets, own.numel())
        return Projection(gradient, *self.project_(rows, gradient, bounds, margin, ridge))


OPERATORS = torch.ops.cga_lightning
IMPLEMENTATIONS = {"torch": Implementation(_reference.project_, _reference.gram)}
if _library.backend("cpu") == "cpp":
    IMPLEMENTATIONS["cpp"] = Implementation(OPERATORS.project_, OPERATORS.gram)
