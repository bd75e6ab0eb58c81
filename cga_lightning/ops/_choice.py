"""Which backend serves a device: the first that is there, unless the environment asks for another."""

import os
from collections.abc import Mapping

VARIABLE = "CGA_LIGHTNING_BACKEND"
BACKENDS = {"cpu": ("cpp", "torch"), "cuda": ("cuda", "cupy", "torch")}
"""What can serve a type of device, the preferred first."""


def chosen(device: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the backend that `CGA_LIGHTNING_BACKEND` asks for, a name or several with commas; None if it names none.

    Raises:
        ValueError: a name is unknown.

    """
    names = [name.strip() for name in environment.get(VARIABLE, "").split(",") if name.strip()]
    known = sorted({name for backends in BACKENDS.values() for name in backends})
    for name in names:
        if name not in known:
            raise ValueError(f"{VARIABLE} must name backends among {', '.join(known)}, found {name!r}.")
    return next((name for name in names if name in BACKENDS[device]), None)


def advice(device: str, failed: str) -> str:
    """Return how to choose another backend for a device than one that has failed."""
    others = " or ".join(f"{VARIABLE}={name}" for name in BACKENDS[device] if name != failed)
    return f"set {others} to choose another (python -m cga_lightning info shows what is there)"
