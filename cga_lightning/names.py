"""Objects by name: one lookup for algorithms, topologies, compressors and partitions; and agents in messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def lookup(kind: str, known: Mapping[str, T], name: str) -> T:
    """What `known` has under that name.

    Args:
        kind: what it is, for the error: "algorithm", "topology", ...
        known: all of that kind, by name.
        name: one of the names.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in known:
        article = "an" if kind[0] in "aeiou" else "a"
        raise ValueError(f"Unknown {kind} {name!r}; known: {', '.join(known)}, or pass {article} {kind} of your own.")
    return known[name]


def check_choice(name: str, given: object, allowed: Sequence[str]) -> None:
    """Check that an option has one of the values that it may have.

    Raises:
        ValueError: it has none of them.
    """
    if given not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {given!r}.")


def resolved(kind: str, known: Mapping[str, Callable[[], T]], given: str | T, base: type[Any]) -> T:
    """The object that was given, or the one of the given name with its default settings.

    Args:
        kind: what it is, for the error.
        known: what makes one of each kind, by name.
        given: a name or an object.
        base: the class of all of that kind; typed as Any, since it is abstract.

    Raises:
        ValueError: there is none of that name.
        TypeError: what was given is neither a name nor of class `base`.
    """
    found = lookup(kind, known, given)() if isinstance(given, str) else given
    if not isinstance(found, base):
        raise TypeError(f"{kind} must be a name or an object of a subclass of {base.__name__}, got {found!r}.")
    return found


def listed(numbers: Iterable[int]) -> str:
    """Ranks or counts, for a message."""
    return ", ".join(map(str, numbers))
