"""What has changed in a module between two snapshots, made in a third one of the same module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cga_lightning.copy_on_write import address
from cga_lightning.passes.snapshot import Snapshot, same_entries, same_items

_IMMUTABLE = (type(None), bool, int, float, complex, str, bytes)
_ABSENT = object()


def merged(mine: Snapshot, before: Snapshot, after: Snapshot) -> Snapshot:
    """`mine`, with what has changed from `before` to `after` changed likewise where it was as in `before`.

    A value that is another in `mine` stays: it belongs to whom the snapshot is of.
    """
    old, new, known = ({id(holder): contents for holder, contents in of.contents()} for of in (before, after, mine))
    pairs = [
        (holder, _merged(contents, old.get(id(holder)), new.get(id(holder)))) for holder, contents in mine.contents()
    ]
    pairs += [pair for pair in after.contents() if id(pair[0]) not in known]
    return mine.with_contents(pairs)


def _merged(mine: Any, old: Any, new: Any) -> Any:
    if old is None or new is None or _same(old, new):
        return mine
    if isinstance(mine, dict):
        return _merged_dict(mine, old, new)
    return new if _same(mine, old) else mine


def _merged_dict(mine: dict[Any, Any], old: dict[Any, Any], new: dict[Any, Any]) -> dict[Any, Any]:
    def is_as_before(name: Any) -> bool:
        return _alike(mine.get(name, _ABSENT), old.get(name, _ABSENT))

    result = {name: value for name, value in mine.items() if name in new or not is_as_before(name)}
    changed = {name: value for name, value in new.items() if value is not old.get(name, _ABSENT)}
    return result | {name: value for name, value in changed.items() if is_as_before(name)}


def _alike(first: Any, second: Any) -> bool:
    return first is second or (type(first) is type(second) and isinstance(first, _IMMUTABLE) and first == second)


def _same(first: Any, second: Any) -> bool:
    """Whether two contents of one object are the same: items, or for a tensor its memory and values."""
    if isinstance(first, tuple):
        values, others = first[1], second[1]
        return address(values) == address(others) or _equal(values, others)
    if isinstance(first, dict):
        return same_items(first, second)
    return first == second if isinstance(first, set) else same_entries(first, second)


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and first.dtype == second.dtype and torch.equal(first, second)
