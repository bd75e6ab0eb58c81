"""The labels of a data set, wherever it keeps them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from cga_lightning.classes import classes_of
from cga_lightning.lightning.rounds import sized_length

NAMES = ("label", "labels", "target", "targets", "y")
"""How samples that are dicts, and the columns of a table, name their class."""


def labels_of(dataset: Any, field: str | int | None = None) -> NDArray[Any]:
    """The class of every sample `[n]`: an attribute of the data set, a column, or a part of the samples.

    Looked for are `targets` and `labels` with one value per sample, the last tensor of a `TensorDataset`, a column or
    key of a name in `NAMES`, and the second item of a sample. Where that is no class, such as a mask, an index or a
    weight, the other items after the input are tried.

    Args:
        dataset: map-style, such as those of torch and of Hugging Face, or a list of samples.
        field: which column, attribute, key or item it is.

    Raises:
        TypeError: there is nothing that could be the labels.
        ValueError: the given field is not there, or holds no classes.
    """
    if isinstance(dataset, Subset):
        return labels_of(dataset.dataset, field)[np.asarray(dataset.indices, dtype=np.int64)]
    if isinstance(dataset, ConcatDataset):
        return np.concatenate([labels_of(part, field) for part in dataset.datasets])
    if field is not None:
        return classes_of(_given(dataset, field))
    doubtful, reasons = [], []
    for found in _candidates(dataset):
        try:
            labels = classes_of(found)
        except ValueError as error:
            reasons.append(str(error))
            continue
        if _surely_classes(labels):
            return labels
        doubtful.append(labels)
    if doubtful:
        return doubtful[0]
    reasons.append(f"its samples are no (input, label) pairs, and have no {', '.join(NAMES)}.")
    raise TypeError(
        f"Cannot find the labels of {type(dataset).__name__}: {reasons[0]} Pass PartitionedDataModule(labels=...), the "
        "classes or the name of their column or key; or partition='iid', or a list of index arrays."
    )


def _candidates(dataset: Any) -> Iterator[Any]:
    for name in ("targets", "labels"):
        values: Any = getattr(dataset, name, None)
        if hasattr(values, "__len__") and sized_length(dataset) in (None, len(values)):
            yield values
    if isinstance(dataset, TensorDataset):
        yield from reversed(dataset.tensors[1:])
    elif columns := getattr(dataset, "column_names", None):
        yield from (_column(dataset, name) for name in NAMES if name in columns)
    elif len(dataset):
        first = dataset[0]
        keys = [name for name in NAMES if name in first] if isinstance(first, Mapping) else _items(first)
        yield from (_part(dataset, key) for key in keys if _may_be_a_class(first[key]))


def _given(dataset: Any, field: str | int) -> Any:
    try:
        if isinstance(field, str) and field in (getattr(dataset, "column_names", None) or ()):
            return _column(dataset, field)
        if isinstance(field, str) and hasattr(dataset, field):
            return getattr(dataset, field)
        return _part(dataset, field)
    except (LookupError, TypeError) as error:
        raise ValueError(
            f"labels={field!r} must be a column, an attribute, or a key or item of the samples, but "
            f"{type(dataset).__name__} has none of that name."
        ) from error


def _column(table: Any, name: str) -> Any:
    """A column of a data set of Hugging Face, without reading the others."""
    plain = table.with_format(None) if hasattr(table, "with_format") else table
    return plain[name][:]


def _part(dataset: Any, key: str | int) -> list[Any]:
    return [dataset[index][key] for index in range(len(dataset))]


def _items(sample: Any) -> range:
    return range(1, len(sample)) if isinstance(sample, tuple | list) else range(0)


def _may_be_a_class(value: Any) -> bool:
    """A number, a string or a one-hot vector."""
    try:
        array = np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
    except ValueError:
        return False
    one_hot = array.ndim == 1 and array.dtype.kind in "biuf" and sorted(array)[-2:] == [0, 1] and array.sum() == 1
    return (array.size == 1 and array.ndim < 2 and array.dtype.kind in "biufSU") or bool(one_hot)


def _surely_classes(labels: NDArray[Any]) -> bool:
    """Some samples share one, and they are no fractions: neither indices nor weights."""
    fractions = labels.dtype.kind == "f" and (labels != np.floor(labels)).any()
    return len(np.unique(labels)) < len(labels) and not fractions
