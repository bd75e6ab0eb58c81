"""What algorithms keep for one agent from step to step: a state for each algorithm object, also inside another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class AlgorithmState:
    """What one algorithm keeps, and by name what the algorithms inside it keep.

    Attributes:
        own: tensors and plain containers, so that it can be saved.
    """

    def __init__(self, own: dict[str, Any] | None = None, inside: dict[str, AlgorithmState] | None = None) -> None:
        self.own = {} if own is None else own
        self._inside = {} if inside is None else inside

    def of(self, algorithm: object, holder: object) -> AlgorithmState:
        """The state of an algorithm that `holder`, whose state this is, keeps in one of its attributes."""
        return self._inside.setdefault(_name_of(algorithm, holder), AlgorithmState())

    def copy(self) -> AlgorithmState:
        """One with the same values in dictionaries of its own."""
        return AlgorithmState(dict(self.own), {name: state.copy() for name, state in self._inside.items()})

    def state_dict(self) -> dict[str, Any]:
        """Plain dictionaries of the same values, not copied."""
        return {"own": self.own, "inside": {name: state.state_dict() for name, state in self._inside.items()}}

    @classmethod
    def from_state_dict(cls, saved: Mapping[str, Any]) -> AlgorithmState:
        """What `state_dict` has described."""
        return cls(saved["own"], {name: cls.from_state_dict(state) for name, state in saved["inside"].items()})


def _name_of(algorithm: object, holder: object) -> str:
    """The attribute of `holder` that is or contains `algorithm`; its class where there is none."""
    for name, value in vars(holder).items():
        for place, item in _items(name, value):
            if item is algorithm:
                return place
    return type(algorithm).__name__


def _items(name: str, value: object) -> Iterator[tuple[str, object]]:
    yield name, value
    if isinstance(value, dict):
        yield from ((f"{name}.{key}", item) for key, item in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"{name}.{place}", item) for place, item in enumerate(value))
