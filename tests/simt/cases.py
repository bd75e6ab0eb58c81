"""Problems with a known answer, in plain numpy: for the executor, under its sanitizers, and for a GPU."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

NUMPY = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16, "f64": np.float64}
# Spacing of the numbers of a type, relative.
ROUNDING = {"f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8, "f64": 2.0**-53}
RIDGE = {"f32": 1e-6, "f16": 1e-4, "bf16": 1e-4, "f64": 1e-12}


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """Round float64 values to a type; bfloat16 is kept as its bits."""
    if dtype != "bf16":
        return values.astype(NUMPY[dtype])
    bits = values.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def decode(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return the values of a type as float64."""
    if dtype != "bf16":
        return values.astype(np.float64)
    return (values.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


@dataclass
class Case:
    """Rows [K + 1, d] in a type (the own gradient last), segment bounds, margin and ridge."""

    rows: np.ndarray
    dtype: str = "f32"
    bounds: Sequence[int] = ()
    margin: float = 0.0
    ridge: float | None = None
    offset: int = 0  # every row starts so many elements behind a multiple of 16 bytes
    memory: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bounds = tuple(self.bounds) or (0, self.rows.shape[1])
        self.ridge = RIDGE[self.dtype] if self.ridge is None else self.ridge

    @property
    def cross(self) -> int:
        return len(self.rows) - 1

    def encoded(self) -> list[np.ndarray]:
        """Return the rows, each in memory of its own and exact size."""
        rows = []
        for row in self.rows:
            values = encode(row, self.dtype)
            self.memory.append(np.empty(values.size + self.offset, values.dtype))
            rows.append(self.memory[-1][self.offset :])
            rows[-1][:] = values
        return rows


def random_case(cross: int, length: int, seed: int = 0, *, conflict: float = 0.3, **options: object) -> Case:
    """Gaussian rows that share a direction, which the own gradient opposes: most of them become active."""
    random = np.random.default_rng(seed)
    shared = random.standard_normal(length)
    rows = random.standard_normal((cross + 1, length)) + conflict * shared
    rows[-1] -= 2 * conflict * shared
    dtype = str(options.get("dtype", "f32"))
    return Case(decode(encode(rows, dtype), dtype), **options)  # type: ignore[arg-type]


def reference(case: Case) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return g~ [d] in float64 and the Gram matrix of every segment, from the definition, by scipy's NNLS."""
    result = case.rows[-1].copy()
    grams = []
    for low, high in zip(case.bounds, case.bounds[1:], strict=False):
        part = case.rows[:, low:high]
        with np.errstate(all="ignore"):
            grams.append(part @ part.T)
            finite = np.isfinite(part).all(1)
        if finite[-1]:
            result[low:high] = _project(part[:-1][finite[:-1]], part[-1], case.margin, case.ridge or 0.0)
    return result, grams


def _project(rows: np.ndarray, own: np.ndarray, margin: float, ridge: float) -> np.ndarray:
    from scipy.optimize import nnls

    own = own + margin * rows.sum(0)
    norms = np.linalg.norm(rows, axis=1)
    used, peak = norms > 0, np.abs(own).max(initial=0.0)
    if not used.any() or peak == 0:
        return own
    unit = rows[used] / norms[used, None]
    # |G'w + g|^2 + ridge |w|^2 as one least-squares problem, reduced to K + 1 columns.
    stacked = np.vstack([np.column_stack([unit.T, own / peak]), np.zeros((len(unit), len(unit) + 1))])
    stacked[len(own) :, :-1] = np.sqrt(ridge) * np.eye(len(unit))
    reduced = np.linalg.qr(stacked, mode="r")
    weights, _ = nnls(reduced[:, :-1], -reduced[:, -1], maxiter=50 * len(unit))
    return own + peak * (weights @ unit)
