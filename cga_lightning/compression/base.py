"""What every compressor is: a message of known size, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor


class Layout(Protocol):
    """What a compressor must know of flat vectors `[d]`, e.g. a FlatLayout; s parameters lie in them."""

    @property
    def numel(self) -> int:
        """Length d of the vectors, with the zeros between parameters."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the vectors; all are of one."""

    @property
    def shapes(self) -> Sequence[torch.Size]:
        """The shape of every parameter."""

    def views(self, flat: Tensor) -> list[Tensor]:
        """One view into `flat` per parameter; what no view covers is zero."""


class Compressor(ABC):
    """Base of all compressors. Both ends must hold an equal compressor and an equal layout.

    `fork` one per directed edge, so that each has its own memory and its own random stream, and save their
    `state_dict`. Decompressing needs no state.
    """

    @property
    def needs_feedback(self) -> bool:
        """Whether it converges only inside `ErrorFeedback`."""
        return False

    @abstractmethod
    def wire_size(self, layout: Layout) -> int:
        """Bytes of every message for vectors of that layout."""

    @abstractmethod
    def compress(self, x: Tensor, layout: Layout) -> Tensor:
        """Return the message, uint8 `[wire_size(layout)]`, new memory; `x` `[d]` stays as it is."""

    @abstractmethod
    def decompress(self, wire: Tensor, layout: Layout) -> Tensor:
        """Return `[d]` of the layout's dtype, zero in the padding, new memory.

        Raises:
            ValueError: the message is not uint8 `[wire_size(layout)]`.
        """

    def compress_with_memory_(self, memory: Tensor, x: Tensor, layout: Layout) -> Tensor:
        """Return the message for `memory + x`, and leave in `memory` `[d]` what it loses, 0 if not finite."""
        wire = self.compress(memory.add_(x), layout)
        memory.sub_(self.decompress(wire, layout)).nan_to_num_(0.0, 0.0, 0.0)
        return wire

    def fork(self, key: int) -> Compressor:
        """Return an equal compressor with a fresh state and, if it draws at random, its own stream."""
        return self

    def state_dict(self) -> dict[str, Any]:
        """State to resume from; empty if there is none."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 -- most have none
        """Take over what `state_dict` returned."""

    def _check(self, wire: Tensor, layout: Layout) -> None:
        expected = self.wire_size(layout)
        if wire.dtype != torch.uint8 or wire.shape != (expected,):
            raise ValueError(
                f"{self!r} expects a message of {expected} bytes, got {wire.dtype} {list(wire.shape)}; all agents need "
                "the same model and the same compressor."
            )


class RandomCompressor(Compressor):
    """Base of compressors that draw at random: dataclasses with a `seed`, whose state is a generator."""

    seed: int

    def fork(self, key: int) -> Compressor:
        """Return a copy that draws from stream `key` of this seed."""
        mixed = (self.seed * 0x9E3779B97F4A7C15 + key + 1) % 2**63
        return replace(self, seed=mixed)  # type: ignore[type-var]

    def state_dict(self) -> dict[str, Any]:
        """The state of the generator."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on drawing where the saved one stopped."""
        self._generator.set_state(state["generator"].cpu())

    @cached_property
    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def _draw(self, below: int, count: int = 1) -> Tensor:
        return torch.randint(below, (count,), generator=self._generator)
