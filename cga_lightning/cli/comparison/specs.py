"""Objects from text: a name, or a class path with its arguments as in the files of LightningCLI; nothing is evaluated.

cga
{class_path: CGA, init_args: {margin: 0.5}}
{class_path: QuasiGlobalMomentum, init_args: {algorithm: {class_path: CGA}}}
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pkgutil import resolve_name
from typing import Any

from cga_lightning.names import lookup

Spec = str | Mapping[str, Any]
"""A name, or `class_path` and, if there are arguments, `init_args`."""

_KEYS = {"class_path", "init_args"}


def built(
    kind: str, spec: Spec, base: type[Any], known: Mapping[str, Callable[..., Any]], home: str, **more: Any
) -> Any:
    """The object that is described.

    Args:
        kind: what it is, for errors: "algorithm", "topology", ...
        spec: its name, or its class path and arguments.
        base: the class that it must have.
        known: what makes those that have names.
        home: the package where class paths without a dot are looked up.
        more: arguments beside those of the spec.

    Raises:
        ValueError: there is nothing of that name or path, or it is of another class.
    """
    if isinstance(spec, str):
        return lookup(kind, known, spec)()
    return class_of(kind, spec, base, home)(**{**_arguments(spec, home), **more})


def class_of(kind: str, spec: Mapping[str, Any], base: type[Any], home: str) -> Callable[..., Any]:
    """The class of a spec, or the class method that makes one.

    Raises:
        ValueError: there is nothing of that path, or it is of another class.
    """
    found = imported(kind, spec, home)
    owner = found if inspect.isclass(found) else getattr(found, "__self__", None)
    if not (inspect.isclass(owner) and issubclass(owner, base)):
        raise ValueError(f"{kind} must be a {base.__name__}, but {spec['class_path']!r} is {found!r}.")
    return found  # type: ignore[no-any-return]


def imported(kind: str, spec: Mapping[str, Any], home: str) -> Any:
    """What the class path of a spec leads to.

    Raises:
        ValueError: the spec has no class path or other keys, or there is nothing of that path.
    """
    if "class_path" not in spec or not spec.keys() <= _KEYS:
        raise ValueError(f"{kind} must be a name, or have class_path and init_args, got the keys {', '.join(spec)}.")
    path, reasons = str(spec["class_path"]), []
    for place in (f"{home}.{path}", path):
        try:
            return resolve_name(place)
        except (ImportError, AttributeError, ValueError) as error:
            reasons.append(str(error))
    raise ValueError(
        f"{kind}: there is no {path!r}, neither in {home} nor from the top: {'; '.join(reasons)}. Write the path as in "
        "`from package.module import Class`: package.module.Class."
    )


def function(kind: str, spec: Spec, known: Mapping[str, Callable[..., Any]], home: str) -> Callable[..., Any]:
    """A function that is described like an object, with the arguments that the spec gives.

    Raises:
        ValueError: there is nothing of that name or path, or it cannot be called.
    """
    if isinstance(spec, str):
        return lookup(kind, known, spec)
    found = imported(kind, spec, home)
    if not callable(found):
        raise ValueError(f"{kind} must be a function, but {spec['class_path']!r} is {found!r}.")
    return partial(found, **_arguments(spec, home))


def label(spec: Any) -> str:
    """The spec on one line, as a person would write it: `CGA(margin=0.5)`."""
    if not _is_object(spec):
        return str(spec) if isinstance(spec, str) else repr(spec)
    arguments = ", ".join(f"{name}={_value(value)}" for name, value in (spec.get("init_args") or {}).items())
    parts = str(spec["class_path"]).split(".")
    start = next((place for place, part in enumerate(parts) if part[:1].isupper()), len(parts) - 1)
    return f"{'.'.join(parts[start:])}({arguments})"


def _value(value: Any) -> str:
    return label(value) if _is_object(value) else repr(value)


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping) and "class_path" in value


def _arguments(spec: Mapping[str, Any], home: str) -> dict[str, Any]:
    return {name: _argument(name, value, home) for name, value in (spec.get("init_args") or {}).items()}


def _argument(name: str, value: Any, home: str) -> Any:
    """Objects inside objects, such as the algorithm of a wrapper; all else stays as it is."""
    if not _is_object(value):
        return value
    return class_of(name, value, object, home)(**_arguments(value, home))
