"""All tensors of a module that belong to one agent: parameters, frozen or not, and buffers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

State = list[Tensor]
"""The data of every parameter and buffer of a module, by reference, in a fixed order."""
Key = tuple[int, str]
"""Of a tensor in its module, as long as that lives; only that of a buffer has a name."""


class ModuleState:
    """Reads and replaces the tensors of one module without copying them.

    Attributes:
        names: of the tensors, in the order of a state.
    """

    def __init__(self, module: nn.Module) -> None:
        self.names = [name for name, _ in module.named_parameters()]
        self.parameters = list(module.parameters())
        self._buffers: list[tuple[nn.Module, str]] = []
        for prefix, m in module.named_modules():
            own = [name for name, buffer in m._buffers.items() if buffer is not None]
            self._buffers += [(m, name) for name in own]
            self.names += [f"{prefix}.{name}" if prefix else name for name in own]

    @property
    def keys(self) -> list[Key]:
        """What identifies every tensor as long as its module lives, in the order of a state."""
        return [(id(p), "") for p in self.parameters] + [(id(m), name) for m, name in self._buffers]

    @property
    def tensors(self) -> dict[Key, Tensor]:
        """The current tensors by what identifies them."""
        return dict(zip(self.keys, self.capture(), strict=True))

    def capture(self) -> State:
        """The tensors that the module uses now."""
        return [p.data for p in self.parameters] + [getattr(m, name) for m, name in self._buffers]

    def activate(self, state: State) -> None:
        """Let the module use these tensors from now on; not while a graph of its parameters is alive."""
        count = len(self.parameters)
        for parameter, data in zip(self.parameters, state[:count], strict=True):
            parameter.data = data
        for (m, name), buffer in zip(self._buffers, state[count:], strict=True):
            m._buffers[name] = buffer

    @contextmanager
    def activated(self, state: State) -> Iterator[None]:
        """Let the module use these tensors inside the block, then those it used before."""
        before = self.capture()
        self.activate(state)
        try:
            yield
        finally:
            self.activate(before)


def overwrite(state: State, values: State) -> None:
    """Copy `values` into the tensors of `state`, but for expanded ones: they are constants, alike on every agent."""
    for tensor, value in zip(state, values, strict=True):
        if all(stride or size == 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
            tensor.copy_(value)


def mean_state(states: Sequence[State]) -> State:
    """The consensus: the mean over agents of every floating tensor, the first one's value of the others (counters).

    Where all agents have the same value, the mean is that value to the bit. Sums run in float32 or wider.
    """
    alike = zip(*states, strict=True)
    return [mean_tensor(tensors) if is_averaged(tensors[0]) else tensors[0].clone() for tensors in alike]


def is_averaged(tensor: Tensor) -> bool:
    """Whether agents have the mean of their tensors, and not each its own."""
    return tensor.is_floating_point() or tensor.is_complex()


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """In which tensors of this dtype are averaged."""
    return torch.float32 if tensor.itemsize < torch.float32.itemsize else tensor.dtype


def mean_tensor(tensors: Sequence[Tensor]) -> Tensor:
    """The mean of tensors of one shape and dtype, in their order."""
    first = tensors[0]
    wide = wide_dtype(first)
    start = _finite_part(first.to(wide))
    total = torch.zeros_like(start)
    for tensor in tensors:
        total += _deviation(tensor.to(wide), start, len(tensors))
    return _mean_around(start, total).to(first.dtype)


def _finite_part(tensor: Tensor) -> Tensor:
    """A copy with 0 for what is not finite: where a mean starts from, see `_deviation`."""
    return torch.where(tensor.isfinite(), tensor, 0.0)


def _deviation(tensor: Tensor, start: Tensor, count: int) -> Tensor:
    """What one of `count` tensors adds to their mean, less `start`: nothing where it equals `start`.

    Dividing first keeps what is as large as the dtype allows from overflowing, masks of `finfo.min` for instance.
    """
    return torch.where(tensor == start, 0.0, tensor / count - start / count)


def _mean_around(start: Tensor, deviations: Tensor) -> Tensor:
    """The mean, from `start` and the sum of all deviations: `start` itself where they are 0, with its sign."""
    return torch.where(deviations == 0, start, start + deviations)


def squared_distance(state: State, mean: State) -> Tensor:
    """|x - mean|^2 over all floating tensors of two states, a float64 scalar."""
    pairs = [(a, b) for a, b in zip(state, mean, strict=True) if a.is_floating_point()]
    return torch.stack([(a.double() - b.double()).square().sum() for a, b in pairs]).sum()
