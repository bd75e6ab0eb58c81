"""`cga-lightning info`: versions, the backends of the projection, and why one is missing."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import torch

from cga_lightning.ops import _choice, _library

_PACKAGES = ("cga-lightning", "torch", "pytorch-lightning", "lightning", "numpy", "cupy")


def main(arguments: Sequence[str] = ()) -> None:
    """Print what is installed and compiled here."""
    argparse.ArgumentParser(prog="cga-lightning info", description=__doc__).parse_args(arguments)
    print("\n".join(_info()))


def _info() -> list[str]:
    lines = [f"python {platform.python_version()} on {platform.machine()}"]
    lines += [f"{name} {_version(name)}" for name in _PACKAGES]
    lines.append(f"cpu: {_library.backend('cpu')} ({torch.backends.cpu.get_cpu_capability()})")
    lines.append(f"cuda: {_library.backend('cuda')} ({_cuda_devices()})")
    if asked := os.environ.get(_choice.VARIABLE):
        lines.append(f"{_choice.VARIABLE}={asked}")
    lines += [f"backend {name!r} is missing: {reason}" for name, reason in _library.missing().items()]
    return lines


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cuda_devices() -> str:
    count = torch.cuda.device_count()
    return ", ".join(torch.cuda.get_device_name(index) for index in range(count)) or "no device"
