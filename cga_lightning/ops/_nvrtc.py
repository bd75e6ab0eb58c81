"""The CUDA kernels without a compiled extension: CuPy compiles the same source at run time.

For machines with a GPU but no CUDA toolkit: `pip install cga-lightning[cupy]`. Nothing is copied: a launch
gets the addresses of torch's tensors and runs on torch's current stream. CuPy keeps what it compiled on disk.
"""

import ctypes
import re
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cga_lightning.ops import _choice
from cga_lightning.ops._plan import EXACT_BELOW, SHARED_WITHOUT_ASKING, Addresses, Device, Launch, Plan

TYPES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.float64: "f64"}
# Number of the kernels of a type in csrc/kernels/kernels.cuh; 0: those that no type concerns.
UNITS = {"f32": 1, "f16": 2, "bf16": 3, "f64": 4}
OPTIONS = ("-std=c++17",)


def missing() -> str | None:
    """Return why this path cannot serve CUDA tensors, or None if it can."""
    if find_spec("cupy") is None:
        return "CuPy is not installed: pip install cga-lightning[cupy]"
    if (release := torch.version.cuda) is None:
        return "this build of torch is without CUDA"
    if not _folder().is_dir():
        return f"the sources of the kernels are not at {_folder()}"
    try:
        import cupy

        return _mismatch(cupy, int(release.split(".")[0]))
    except Exception as error:  # a package whose own libraries are missing raises anything
        return f"CuPy cannot be used, {type(error).__name__}: {error}"


def _mismatch(cupy: Any, ours: int) -> str | None:
    """Return why this CuPy cannot serve a torch for that release of CUDA, or None."""
    if not hasattr(cupy.cuda.Stream, "from_external"):
        return f"CuPy {cupy.__version__} is too old: 14 or later is needed"
    theirs = cupy.cuda.runtime.runtimeGetVersion() // 1000  # of 13000, without a call to the driver
    return None if theirs == ours else f"torch is for CUDA {ours}, CuPy {cupy.__version__} for CUDA {theirs}"


def gram(rows: Sequence[Tensor], own: Tensor, offsets: Tensor, *, exact: bool = False) -> Tensor:
    """Return the inner products of rows and own in each segment, [s, K + 1, K + 1] float64."""
    products = own.new_empty((offsets.numel() - 1, len(rows) + 1, len(rows) + 1), dtype=torch.float64)
    _run("products", rows, own, offsets, gram=products, exact=exact, ridge=EXACT_BELOW)
    return products


def solve(products: Tensor, margin: float, eps: float) -> tuple[Tensor, Tensor]:
    """Return v [s, K] float64 and the status [s] int32 for given inner products."""
    segments, size = products.shape[:2]
    dual, status = _results(products, segments, size - 1)
    addresses = Addresses([0] * (size - 1), 0, 0, dual.data_ptr(), status.data_ptr(), products.data_ptr())
    plan = Plan("f64", size - 1, (0,) * (segments + 1), _device(products), addresses, margin, eps)
    if segments:
        _launch(plan.solve(), products)
    return dual, status


def combine_(rows: Sequence[Tensor], own: Tensor, offsets: Tensor, dual: Tensor) -> None:
    """Add the weighted rows to `own` [d]; a row of weight 0 is not read."""
    _run("combine", rows, own, offsets, dual=dual)


def project_(rows: Sequence[Tensor], own: Tensor, offsets: Tensor, margin: float, eps: float) -> tuple[Tensor, Tensor]:
    """Overwrite `own` [d] with its projection; return v [s, K] float64 and the status [s] int32."""
    dual, status = _results(own, offsets.numel() - 1, len(rows))
    _run("project", rows, own, offsets, dual=dual, status=status, margin=margin, ridge=eps)
    return dual, status


def source(unit: int) -> str:
    """Return the kernels of a unit as one text. CuPy's cache goes by it, so headers cannot change unseen."""
    return f"#define CGA_TYPE {unit}\n{_inlined(_folder() / 'kernels.cuh', set())}"


def _inlined(path: Path, seen: set[str]) -> str:
    if path.name in seen:
        return ""
    seen.add(path.name)

    def replace(match: re.Match[str]) -> str:
        included = path.parent / match[1]
        # The CPU executor's twins are never there, nor wanted.
        return _inlined(included, seen) if included.exists() else match[0]

    text = path.read_text().replace("#pragma once\n", "")
    return re.sub(r'^#include "(.*)"\n', replace, text, flags=re.MULTILINE)


def _folder() -> Path:
    """Return where the sources are: in the installed package, or in a checkout."""
    installed = Path(__file__).parent.parent / "kernels"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "csrc" / "kernels"


def _results(like: Tensor, segments: int, cross: int) -> tuple[Tensor, Tensor]:
    dual = like.new_empty((segments, cross), dtype=torch.float64)
    return dual, like.new_empty(segments, dtype=torch.int32)


def _run(
    part: str,
    rows: Sequence[Tensor],
    own: Tensor,
    offsets: Tensor,
    *,
    dual: Tensor | None = None,
    status: Tensor | None = None,
    gram: Tensor | None = None,
    **options: Any,
) -> None:
    # Two passes: CuPy links its device runtime into kernels that it launches cooperatively.
    def planned(workspace: int) -> Plan:
        results = (0 if result is None else result.data_ptr() for result in (dual, status, gram))
        addresses = Addresses([row.data_ptr() for row in rows], own.data_ptr(), workspace, *results)
        bounds = tuple(offsets.tolist())
        return Plan(TYPES[own.dtype], len(rows), bounds, _device(own), addresses, passes=2, **options)

    # Given back while the kernels are queued: torch gives memory out again in the order of the stream.
    workspace = own.new_empty(planned(0).workspace_bytes, dtype=torch.uint8)
    _launch(getattr(planned(workspace.data_ptr()), part)(), own)


def _launch(launches: Sequence[Launch], tensor: Tensor) -> None:
    import cupy

    index, stream = _stream(tensor)
    with cupy.cuda.Device(index), cupy.cuda.Stream.from_external(_External(stream)):
        for launch in launches:
            try:
                _launch_one(launch)
            except Exception as error:
                raise RuntimeError(
                    f"cga_lightning: the backend cupy has failed at {launch.kernel}: {error}; "
                    f"{_choice.advice('cuda', 'cupy')}."
                ) from error


def _launch_one(launch: Launch) -> None:
    kernel = _module(UNITS.get(launch.kernel.rpartition("_")[2], 0)).get_function(launch.kernel)
    if launch.shared_bytes > SHARED_WITHOUT_ASKING:
        kernel.max_dynamic_shared_size_bytes = launch.shared_bytes
    arguments = tuple(_by_value(argument) for argument in launch.arguments)
    kernel((launch.grid,), (launch.block,), arguments, shared_mem=launch.shared_bytes)


@cache
def _module(unit: int) -> Any:
    import cupy

    return cupy.RawModule(code=source(unit), options=OPTIONS)


def _by_value(argument: ctypes.Structure) -> np.ndarray[Any, Any]:
    """Return a structure as CuPy takes one by value: an array of one element of its size."""
    return np.frombuffer(bytes(argument), dtype=np.dtype((np.void, ctypes.sizeof(argument))))


class _External(NamedTuple):
    """A stream of torch, by the protocol that CuPy asks for."""

    address: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.address


def _device(tensor: Tensor) -> Device:
    properties = torch.cuda.get_device_properties(tensor.device)
    return Device((properties.major, properties.minor), properties.multi_processor_count)


def _stream(tensor: Tensor) -> tuple[int, int]:
    """Return the index of the device and the address of torch's current stream there."""
    stream = torch.cuda.current_stream(tensor.device)
    return stream.device_index, stream.cuda_stream
