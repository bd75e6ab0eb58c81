"""The class of every sample, in whatever form labels come."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def classes_of(labels: Any) -> NDArray[Any]:
    """The class of every sample `[n]`, of any type that can be sorted.

    Args:
        labels: array, tensor or list `[n]` or `[n, 1]` of numbers or strings, or rows `[n, C]` that are one-hot.

    Raises:
        ValueError: a sample has several labels or none (None, NaN), or they cannot be sorted.
    """
    values = _array(labels)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    elif _one_hot(values):
        values = values.argmax(axis=1)
    if values.ndim != 1:
        raise ValueError(
            f"labels must be one class per sample, [n], got the shape {list(values.shape)}, which is not one-hot; give "
            "one label of each sample, or use iid, or index arrays of your own."
        )
    for sample in np.flatnonzero(_missing(values)):
        raise ValueError(f"labels must be one class per sample, got {values[sample]} at sample {sample}; leave it out.")
    try:
        if values.dtype.kind == "O":
            np.sort(values)
            _ = set(values.tolist())  # no lists and sets, which can be sorted too
    except TypeError as error:
        raise ValueError(f"labels must be numbers or strings, of one type, got {values[0]!r}: {error}.") from error
    return values


def _array(labels: Any) -> NDArray[Any]:
    if not isinstance(labels, list | tuple):
        return np.asarray(_on_cpu(labels))
    values = [_on_cpu(value) for value in labels]
    kinds = set(map(type, values))
    mixed = len(kinds) > 1 and str in kinds  # numpy would make strings of all, nan included
    try:
        return np.asarray(values, dtype=object if mixed else None)
    except ValueError as error:
        raise ValueError(f"labels must be one class per sample, [n], got several of some: {error}") from error


def _on_cpu(tensor: Any) -> Any:
    return tensor.detach().cpu().numpy() if hasattr(tensor, "detach") else tensor


def _one_hot(values: NDArray[Any]) -> bool:
    """Whether `[n, C]` has a single 1 in each row and 0 elsewhere, in no fewer rows than classes."""
    if values.ndim != 2 or values.dtype.kind not in "biuf" or len(values) < values.shape[1]:
        return False
    return bool(((values == 0) | (values == 1)).all() and (values.sum(axis=1) == 1).all())


def _missing(values: NDArray[Any]) -> NDArray[np.bool_]:
    if values.dtype.kind == "O":
        return np.array([value is None or value != value for value in values])
    return np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), dtype=bool)


def repeated(values: NDArray[Any]) -> NDArray[Any]:
    """Refuse the values of a regression: hardly two samples would be of one class."""
    if values.dtype.kind == "f" and (values != np.floor(values)).any() and len(np.unique(values)) > len(values) / 2:
        raise ValueError(
            f"labels must be classes, got {len(np.unique(values))} different values among {len(values)} samples, such "
            f"as {values[0]:.6g}: targets of a regression. Use shards or iid, or give classes such as np.digitize(...)."
        )
    return values
