"""Parameters as one flat vector: the form in which models travel and gradients are projected."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

ALIGNMENT = 128  # bytes: every parameter starts on a cache line, and on a 16-byte boundary for vector loads


class FlatLayout:
    """Where each parameter lies in a flat buffer of `d` elements.

    Every parameter is padded with zeros to a multiple of `alignment` bytes. The zeros add nothing to inner products and
    norms, and they stay zero under every linear operation on whole buffers.

    Args:
        parameters: at least one tensor, all of one floating dtype and on one device, none sharing memory with
            another. Only their shapes are kept.
        alignment: 1 packs the parameters without padding.

    Raises:
        ValueError: for no parameter, several dtypes or devices, or two parameters that overlap in memory.
    """

    def __init__(self, parameters: Iterable[Tensor], alignment: int = ALIGNMENT) -> None:
        parameters = list(parameters)
        _check(parameters)
        self.dtype: torch.dtype = parameters[0].dtype
        self.device: torch.device = parameters[0].device
        self.shapes: tuple[torch.Size, ...] = tuple(p.shape for p in parameters)
        step = max(1, alignment // self.dtype.itemsize)
        ends, end = [0], 0
        for p in parameters:
            end += -(-p.numel() // step) * step
            ends.append(end)
        self.offsets = torch.tensor(ends, dtype=torch.int64)
        strides = [torch.empty(shape, device="meta").stride() for shape in self.shapes]
        self._places = list(zip(self.shapes, strides, ends[:-1], strict=True))
        self.numel: int = end

    def zeros(self) -> Tensor:
        """A new buffer `[d]` of zeros."""
        return torch.zeros(self.numel, dtype=self.dtype, device=self.device)

    def views(self, flat: Tensor) -> list[Tensor]:
        """Views into `flat` `[d]`, one per parameter and in its shape."""
        first = flat.storage_offset()
        return [flat.as_strided(shape, strides, first + start) for shape, strides, start in self._places]

    def write(self, tensors: Sequence[Tensor | None], out: Tensor, views: Sequence[Tensor] | None = None) -> Tensor:
        """Copy one tensor per parameter into `out` `[d]`; None counts as zeros. The padding is not touched.

        Sparse tensors become dense, rows that they hold twice are added.

        Args:
            tensors: what to copy.
            out: where to.
            views: those into `out`, if they are known.
        """
        pairs = list(zip(self.views(out) if views is None else views, tensors, strict=True))
        present = [(view, tensor) for view, tensor in pairs if tensor is not None]
        if present:
            torch._foreach_copy_([view for view, _ in present], [_dense(tensor) for _, tensor in present])
        for view, tensor in pairs:
            if tensor is None:
                view.zero_()
        return out

    def read(self, flat: Tensor, out: Sequence[Tensor]) -> None:
        """Copy `flat` `[d]` into one tensor per parameter."""
        torch._foreach_copy_(list(out), self.views(flat))


def _dense(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.to_dense() if tensor.is_sparse else tensor


def _check(parameters: list[Tensor]) -> None:
    if not parameters:
        raise ValueError("A model needs at least one trainable parameter (requires_grad=True), found none.")
    for what in ("dtype", "device"):
        kinds = sorted({str(getattr(p, what)) for p in parameters})
        if len(kinds) > 1:
            raise ValueError(
                f"All trainable parameters of an agent must have one {what}, found {', '.join(kinds)}. "
                f"Convert the module to one {what}, or freeze the others (requires_grad=False)."
            )
    if not parameters[0].dtype.is_floating_point:
        raise ValueError(f"Trainable parameters must be real floating point, found {parameters[0].dtype}.")
    spans = sorted((p.data_ptr(), p.data_ptr() + p.nbytes) for p in parameters if p.numel())
    if any(end > start for (_, end), (start, _) in zip(spans, spans[1:], strict=False)):
        raise ValueError(
            "Two trainable parameters share memory without being the same object, so they cannot be exchanged "
            "one by one. Tie weights by assigning the same Parameter object to both modules."
        )
