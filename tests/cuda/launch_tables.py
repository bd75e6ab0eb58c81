"""Prints every entry of the launch tables of the compiled extension, and whether CUDA knows its address as a kernel.

Run by test_launch_tables with registered.c preloaded; no device is needed.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import cga_lightning

TABLES = ("common", "f32", "f16", "bf16", "f64")


class Kernel(ctypes.Structure):
    """`Kernel` of csrc/cuda/launch.h."""

    _fields_ = [("name", ctypes.c_char_p), ("function", ctypes.c_void_p)]


def main() -> None:
    (path,) = Path(cga_lightning.__file__).parent.glob("_CUDA*.so")
    library, runtime = ctypes.CDLL(str(path)), ctypes.CDLL(None)
    for table in TABLES:
        name = f"kernels_{table}"
        first, last = (ctypes.c_void_p * 2).in_dll(
            library, f"_ZN3cga4cuda{len(name)}{name}E"
        )  # begin and end of a vector
        for address in range(first, last, ctypes.sizeof(Kernel)):
            kernel = Kernel.from_address(address)
            known = runtime.is_registered(ctypes.c_void_p(kernel.function))
            print(name, kernel.name.decode(), "registered" if known else "unknown")


if __name__ == "__main__":
    main()
