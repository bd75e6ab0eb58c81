"""No collective of `torch.distributed` inside a training step: agents run it for different models each."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

POINT_TO_POINT = frozenset({"send", "recv", "recv_any_source"})
"""What would be taken for a message between agents, or take one, even in a pass that is run once."""


class ForbidCollectives(TorchDispatchMode):
    """Inside, a collective of `torch.distributed` raises: agents run a training step for different models each.

    Args:
        names: which of them; all if None.
    """

    def __init__(self, names: Collection[str] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = names

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refuse operators of c10d, run all others."""
        if "c10d" in func.namespace:  # also _c10d_functional
            name = func.overloadpacket.__name__.strip("_")
            if self._names is None or name in self._names:
                raise_collective(name)
        return func(*args, **(kwargs or {}))


def raise_collective(name: str) -> None:
    """Raise the error for a collective inside training_step."""
    raise RuntimeError(
        f"training_step called the collective {name!r}. Every agent also runs its training_step with the models of its "
        "neighbors, so collectives inside it would mix up agents or hang. Move it to on_train_batch_end, or use "
        "self.log(..., sync_dist=True)."
    )
