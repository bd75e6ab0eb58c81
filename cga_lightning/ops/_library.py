"""The operators of `torch.ops.cga_lightning`: schemas, fake kernels, the compiled library, the fallback.

Schemas are defined here, so that the operators exist with and without a compiled library. A compiled library
adds kernels under its dispatch key; every other device is served by the plain torch kernels below. The choice is made
once, here; a backend that fails later raises.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from cga_lightning.ops import _checks, _choice, _nvrtc, _reference

# Typed as Any: not every torch release annotates these.
_torch_library: Any = torch.library
_torch_ops: Any = torch.ops
_NAMESPACE = "cga_lightning"
_library = _torch_library.Library(_NAMESPACE, "DEF")
_operators = _torch_ops.cga_lightning

_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
_loaded: dict[str, str] = {}  # backend by dispatch key
_missing: dict[str, str] = {}  # reason by backend that was tried


def backend(device: torch.device | str) -> str:
    """Return which implementation serves a device: "cpp", "cuda", "cupy" or "torch" (plain PyTorch)."""
    return _loaded.get(_KEYS.get(torch.device(device).type, ""), "torch")


def missing() -> dict[str, str]:
    """Return why a compiled library is not in use, by the name of its backend."""
    return dict(_missing)


def _load(name: str) -> str | None:
    """Load a compiled library of the package; return why it is not there, or None.

    Args:
        name: file name up to its first dot.

    """
    package = Path(__file__).parent.parent
    found = [path for path in sorted(package.glob(f"{name}.*")) if path.suffix in {".so", ".pyd", ".dylib"}]
    if not found:
        report = package / f"{name}.missing.txt"
        return report.read_text().strip() if report.exists() else "it was not built"
    try:
        _torch_ops.load_library(found[0])
    except OSError as error:
        return f"{found[0].name} could not be loaded: {error}"
    return None


# The checks speak of the operators of torch.ops and of `rows`, in the words of csrc/checks.h.
def _gram(rows: list[Tensor], own: Tensor, offsets: Tensor, exact: bool = False, *, by: Any = _reference) -> Tensor:
    rows, bounds = _checked("gram", rows, own, offsets)
    # Plain torch is always exact.
    options = {} if by is _reference else {"exact": exact}
    products: Tensor = by.gram(rows, own, bounds, **options)
    return products


def _solve(products: Tensor, margin: float, eps: float, *, by: Any = _reference) -> tuple[Tensor, Tensor]:
    _checks.products(f"{_NAMESPACE}::solve", products)
    _checks.scalars(f"{_NAMESPACE}::solve", margin, eps, products.dtype)
    found: tuple[Tensor, Tensor] = by.solve(products, margin, eps)
    return found


def _combine_(rows: list[Tensor], own: Tensor, offsets: Tensor, dual: Tensor, *, by: Any = _reference) -> None:
    rows, bounds = _checked("combine_", rows, own, offsets)
    _checks.disjoint(f"{_NAMESPACE}::combine_", rows, own)
    _checks.dual(f"{_NAMESPACE}::combine_", dual, own, bounds.numel() - 1, len(rows))
    by.combine_(rows, own, bounds, dual)


def _project_(
    rows: list[Tensor], own: Tensor, offsets: Tensor, margin: float, eps: float, *, by: Any = _reference
) -> tuple[Tensor, Tensor]:
    rows, bounds = _checked("project_", rows, own, offsets)
    _checks.disjoint(f"{_NAMESPACE}::project_", rows, own)
    _checks.scalars(f"{_NAMESPACE}::project_", margin, eps, own.dtype)
    found: tuple[Tensor, Tensor] = by.project_(rows, own, bounds, margin, eps)
    return found


def _checked(name: str, rows: list[Tensor], own: Tensor, offsets: Tensor) -> tuple[list[Tensor], Tensor]:
    operator = f"{_NAMESPACE}::{name}"
    return _checks.rows(operator, rows, own, "rows"), _checks.bounds(operator, offsets, own.numel())


def _project(
    rows: list[Tensor], own: Tensor, offsets: Tensor, margin: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    gradient = own.clone()
    return gradient, *_operators.project_(rows, gradient, offsets, margin, eps)


def _fake_gram(rows: list[Tensor], own: Tensor, offsets: Tensor, exact: bool = False) -> Tensor:
    size = len(rows) + 1
    return own.new_empty((offsets.shape[0] - 1, size, size), dtype=torch.float64)


def _fake_solve(products: Tensor, margin: float, eps: float) -> tuple[Tensor, Tensor]:
    segments, size = products.shape[:2]
    return products.new_empty((segments, size - 1)), products.new_empty(segments, dtype=torch.int32)


def _fake_combine_(rows: list[Tensor], own: Tensor, offsets: Tensor, dual: Tensor) -> None:
    return None


def _fake_project_(
    rows: list[Tensor], own: Tensor, offsets: Tensor, margin: float, eps: float
) -> tuple[Tensor, Tensor]:
    return _fake_solve(_fake_gram(rows, own, offsets), margin, eps)


def _fake_project(
    rows: list[Tensor], own: Tensor, offsets: Tensor, margin: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(own), *_fake_project_(rows, own, offsets, margin, eps)


def _define(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define an operator with a kernel for every device that has no compiled one. It is not differentiable."""
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    _library.impl(name, torch.library.fallthrough_kernel, "Autograd")
    torch.library.register_fake(f"{_NAMESPACE}::{name}", fake, lib=_library)


def _use_cupy() -> str | None:
    """Serve CUDA tensors by the kernels that CuPy compiles; return why that cannot be, or None."""
    if reason := _nvrtc.missing():
        return reason
    for kernel in _KERNELS:
        _library.impl(kernel.__name__[1:], partial(kernel, by=_nvrtc), "CUDA")
    return None


def _serve(device: str) -> None:
    """Register the backend that is asked for, or the first that is there."""
    asked = _choice.chosen(device)
    for name in _choice.BACKENDS[device] if asked is None else (asked,):
        if reason := _START[name]():
            _missing[name] = reason
        else:
            _loaded[_KEYS[device]] = name
            return
    _loaded[_KEYS[device]] = str(asked)
    _refuse(device, str(asked))


def _refuse(device: str, asked: str) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise RuntimeError(
            f"cga_lightning: {_choice.VARIABLE} asks for the backend {asked}, which is missing: {_missing[asked]}; "
            f"{_choice.advice(device, asked)}."
        )

    for kernel in _KERNELS:
        _library.impl(kernel.__name__[1:], refuse, _KEYS[device])


_KERNELS = (_gram, _solve, _combine_, _project_)
_START: dict[str, Callable[[], str | None]] = {
    "cpp": partial(_load, "_C"),
    "cuda": partial(_load, "_CUDA"),
    "cupy": _use_cupy,
    "torch": lambda: None,  # serves whatever has no other kernel
}

# rows: the K cross-gradients [d]; own: [d]; offsets: int64 [s + 1] on the CPU; all contiguous.
# products: of rows and own (last) in each segment, [s, K + 1, K + 1] float64; exact: formed in float64.
# dual: [s, K] float64; status: [s] int32.
_define("gram(Tensor[] rows, Tensor own, Tensor offsets, bool exact=False) -> Tensor", _gram, _fake_gram)
_define("solve(Tensor products, float margin, float eps) -> (Tensor, Tensor)", _solve, _fake_solve)
_define("combine_(Tensor[] rows, Tensor(a!) own, Tensor offsets, Tensor dual) -> ()", _combine_, _fake_combine_)
_PROBLEM = "Tensor offsets, float margin, float eps"
_define(f"project_(Tensor[] rows, Tensor(a!) own, {_PROBLEM}) -> (Tensor, Tensor)", _project_, _fake_project_)
_define(f"project(Tensor[] rows, Tensor own, {_PROBLEM}) -> (Tensor, Tensor, Tensor)", _project, _fake_project)
for _device in _KEYS:
    _serve(_device)
