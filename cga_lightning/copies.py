"""Small copies between the host and a device that the host does not wait for."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A copy of a tensor on a device; itself if it is there."""
    pinned = values.pin_memory() if values.is_cpu and device.type == "cuda" else values
    return pinned.to(device, non_blocking=True)


class Arriving:
    """A copy of a tensor in host memory, on its way from a device.

    A tensor on the CPU is there at once, as it is.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._copy = tensor.to("cpu", non_blocking=True)  # from a GPU into pinned memory
        self._event: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    @property
    def is_there(self) -> bool:
        """Whether `numbers` need not wait."""
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def numbers(self) -> list[float]:
        """All elements, waited for if need be."""
        if self._event is not None:
            self._event.synchronize()
        numbers: list[float] = self._copy.flatten().tolist()
        return numbers
