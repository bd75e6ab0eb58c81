"""Packages that only the commands need: the extra `tools`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def tools(what: str) -> Iterator[None]:
    """Inside are imports of packages that the extra brings.

    Args:
        what: what needs them, for the error.

    Raises:
        SystemExit: one is missing; says how to install it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("cga_lightning"):
            raise
        raise SystemExit(
            f"{what} needs {error.name}, which is not installed. Install what the commands need:\n\n"
            "    pip install 'cga-lightning[tools]'"
        ) from error
