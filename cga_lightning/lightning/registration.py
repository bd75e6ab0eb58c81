"""The strategy names of `Trainer(strategy=...)`."""

from __future__ import annotations

from typing import Any

from cga_lightning.algorithms import ALGORITHMS

START_METHODS = {"": "popen", "_spawn": "spawn", "_fork": "fork", "_notebook": "fork"}
"""By the suffix of a name."""


def register(registry: Any, strategy: type) -> None:
    """Register every algorithm under its name, and with a suffix for how the processes start."""
    for algorithm in ALGORITHMS:
        for suffix, start_method in START_METHODS.items():
            registry.register(
                algorithm + suffix,
                strategy,
                description=f"one agent per process, algorithm {algorithm!r}, start_method {start_method!r}",
                algorithm=algorithm,
                start_method=start_method,
            )
