"""Changes between two snapshots are made in a third one where it had the same."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cga_lightning.passes.merging import merged
from cga_lightning.passes.snapshot import Snapshot

NAMES = st.sampled_from("abc")
VALUES = st.integers(0, 2)
ATTRIBUTES = st.dictionaries(NAMES, VALUES)


class Holder(nn.Module):
    """A dict, a list and a tensor, in which everything can be set."""

    def __init__(self):
        super().__init__()
        self.options, self.items = {}, []
        self.register_buffer("values", torch.zeros(2))

    def fill(self, options, items, value):
        self.options.clear()
        self.options.update(options)
        self.items[:] = items
        self.values.fill_(value)
        return Snapshot(self)


def expected(mine, before, after):
    """Of one dict, name by name."""
    chosen = {name: (after if mine.get(name) == before.get(name) else mine).get(name) for name in "abc"}
    return {name: value for name, value in chosen.items() if value is not None}


@settings(max_examples=100, deadline=None)
@given(*(st.tuples(ATTRIBUTES, st.lists(VALUES, max_size=2), VALUES) for _ in range(3)))
def test_only_what_was_the_same_changes(mine, before, after):
    module = Holder()
    contents = [module.fill(*fillings) for fillings in (mine, before, after)]
    merged(*contents).restore()
    assert module.options == expected(mine[0], before[0], after[0])
    assert module.items == (after if mine[1] == before[1] else mine)[1]
    assert module.values.tolist() == [(after if mine[2] == before[2] else mine)[2]] * 2
    contents[0].restore()
    assert (module.options, module.items, module.values[0]) == mine
