"""A module that holds other tensors for a while."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cga_lightning.passes.module_state import Key, ModuleState, State, overwrite

Tensors = dict[Key, Tensor]


class Swapped:
    """The module holds `values`, from now on until `put_aside` or `leave`.

    Args:
        module: whose tensors are swapped.
        values: what it holds meanwhile.
        take_over: called at the end with the buffers that were written meanwhile; by default the module's own tensors
            take them over.
    """

    def __init__(self, module: nn.Module, values: State, take_over: Callable[[Tensors], None] | None = None) -> None:
        keys = ModuleState(module).keys
        self._module = module
        self._take_over = self._write if take_over is None else take_over
        self._own = ModuleState(module).tensors
        self._inside = _tied_alike(dict(zip(keys, values, strict=True)), self._own)
        self._values: Tensors = {key: value.clone() for key, value in self._inside.items()}
        self.is_new = True
        self.come_back()

    def replaced(self) -> bool:
        """Whether other parameters were put in place since the start; to be asked once."""
        now = ModuleState(self._module).tensors
        parameters = [key for key in self._values if not key[1]]
        replaced = any(not _same(now.get(key), self._values[key]) for key in parameters)
        self.is_new = False
        self._values = {key: value for key, value in self._values.items() if key[1]}  # the rest is large
        return replaced

    def put_aside(self) -> None:
        """The module holds its own tensors again."""
        self._inside = ModuleState(self._module).tensors
        _put(self._module, self._own)

    def come_back(self) -> None:
        """The module holds `values` again, as they were put aside."""
        _put(self._module, self._inside)

    def leave(self) -> None:
        """Put aside, and hand on the buffers that were written.

        Raises:
            ValueError: when a buffer has another shape or dtype than before.
        """
        self.put_aside()
        written: Tensors = {}
        for key, before in self._values.items():
            now = self._inside.get(key)
            if key[1] and now is not None and not _same(now, before):
                self._check(key[1], before, now)
                written[key] = now
        if written:
            self._take_over(written)

    def _write(self, values: Tensors) -> None:
        overwrite([self._own[key] for key in values], list(values.values()))

    @staticmethod
    def _check(name: str, before: Tensor, now: Tensor) -> None:
        if (before.shape, before.dtype) != (now.shape, now.dtype):
            raise ValueError(
                f"The buffer {name!r} was {tuple(before.shape)} {before.dtype} before the module was evaluated with "
                f"the mean of all models, and is {tuple(now.shape)} {now.dtype} after it, so the agents cannot take it "
                "over. Keep its shape and dtype, or make it a plain attribute instead of a registered buffer."
            )


def _tied_alike(values: Tensors, own: Tensors) -> Tensors:
    """The values, of which those are one tensor that are one in the module."""
    first: dict[tuple[object, ...], Key] = {}
    return {
        key: values[first.setdefault((own[key].data_ptr() or key, own[key].shape, own[key].stride()), key)]
        for key in values
    }


def _put(module: nn.Module, tensors: Tensors) -> None:
    """Those that the module still has; it may have got others."""
    state = ModuleState(module)
    state.activate([tensors.get(key, now) for key, now in zip(state.keys, state.capture(), strict=True)])


def _same(tensor: Tensor | None, other: Tensor) -> bool:
    """Whether two tensors have the same values; two NaN count as one."""
    if tensor is None or (tensor.shape, tensor.dtype) != (other.shape, other.dtype):
        return False
    return torch.equal(tensor, other) or bool(((tensor == other) | ((tensor != tensor) & (other != other))).all())
