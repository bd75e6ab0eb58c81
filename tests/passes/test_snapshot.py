"""Passes with other parameters leave no trace in the module that runs them."""

import copy
import random
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_lightning.utilities.parsing import AttributeDict
from torch import nn
from torchmetrics import MeanMetric

from cga_lightning.core.layout import FlatLayout
from cga_lightning.passes.micro_batches import MicroBatches, moved
from cga_lightning.passes.random_state import RandomState
from cga_lightning.passes.silence import Silence
from cga_lightning.passes.snapshot import LargeContainers, Snapshot

Pair = namedtuple("Pair", ["first", "second"])


class Keeper(nn.Module):
    """Has one of everything, and changes it all in `touch`."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.metric = MeanMetric()
        self.tensor = torch.zeros(3)
        self.same_tensor = [self.tensor]
        self.array = np.zeros(3)
        self.counts = {"plain": 0, "nested": {"list": [1], "tensor": torch.zeros(2)}}
        self.kinds = [Counter(a=1), OrderedDict(a=[0]), defaultdict(list, a=[0]), AttributeDict(a=[0])]
        self.queue = deque([1, 2], maxlen=2)
        self.pair = Pair(torch.zeros(1), [0])
        self.names = {"a"}
        self.loop = [0]
        self.loop.append(self.loop)
        self.unregistered = {"metric": MeanMetric(), "norm": nn.BatchNorm1d(3)}
        self.parent = [self]
        self.generators = [torch.Generator(), np.random.default_rng(0), random.Random(0)]
        self.namespace = SimpleNamespace(count=0)

    def touch(self):
        self.norm(torch.randn(4, 3))
        self.metric.update(torch.rand(()))
        self.tensor += 1
        assert self.same_tensor[0] is self.tensor
        self.array += 1
        self.counts["plain"] += 1
        self.counts["nested"]["list"].append(2)
        self.counts["nested"]["tensor"].add_(1)
        for kind in self.kinds:
            kind["new"] = 1
        for kind in self.kinds[1:]:
            kind["a"].append(1)
        self.queue.append(3)
        self.pair.first.add_(1)
        self.pair.second.append(1)
        self.names.add("b")
        self.loop[1].append(2)
        assert self.loop[1] is self.loop
        self.unregistered["metric"].update(1.0)
        self.unregistered["norm"](torch.randn(4, 3))
        self.parent[0].new_attribute = 1
        torch.rand(1, generator=self.generators[0])
        self.generators[1].random()
        self.generators[2].random()
        self.register_buffer("new_buffer", torch.zeros(1))
        self.eval()
        self.namespace.count += 1
        torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002

    def content(self):
        modules = [self.norm, self.metric, *self.unregistered.values()]
        plain = {name: value for name, value in vars(self).items() if name not in ("unregistered", "parent", "loop")}
        states = [
            plain["generators"][0].get_state(),
            plain["generators"][1].bit_generator.state,
            self.generators[2].getstate(),
        ]
        buffers = [dict(m._buffers) for m in modules]
        metrics = [vars(m).get("mean_value") for m in modules]
        return copy.deepcopy([plain | {"generators": states}, len(self.loop), buffers, metrics])


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return type(a) is type(b) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple | deque):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b or isinstance(a, nn.Module)


def test_everything_is_as_before():
    module = Keeper()
    before, dictionaries, state = module.content(), [m.__dict__ for m in module.modules()], RandomState.capture()
    parameters = list(module.parameters())
    batches = MicroBatches(parameters, partial(Snapshot, module, leave=parameters), LargeContainers())
    layout = FlatLayout(parameters)
    batches.append()

    def fails():
        module.touch()
        assert not same(module.content(), before)
        raise KeyError

    with pytest.raises(KeyError):
        batches.gradient(layout, fails, layout.zeros())
    assert same(module.content(), before)
    assert all(m.__dict__ is d for m, d in zip(module.modules(), dictionaries, strict=True))
    assert same(list(RandomState.capture()), list(state))
    module.touch()
    assert not same(module.content(), before)


class Bank(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.entries = [torch.zeros(2) for _ in range(LargeContainers.SIZE)]


@pytest.mark.parametrize("first", [1, 2, 3])
def test_entries_of_a_large_container_are_looked_at_now_and_then(first, caplog):
    """Which are changed from some step on: exact from the next look on, and told if there was one before."""
    module = Bank()
    large, layout = LargeContainers(), FlatLayout([module.weight])
    batches = MicroBatches([module.weight], partial(Snapshot, module, leave=[module.weight], large=large), large)

    def own(step):
        module.entries.append(torch.zeros(2))
        if step >= first:
            module.entries[0].add_(1)
        (module.weight * module.entries[0].sum() * len(module.entries)).backward()

    for step in range(1, 9):
        batches.clear()
        batches.append(step)
        own(step)
        batches.learn()
        module.weight.grad, grad = None, module.weight.grad
        gradient = layout.views(batches.gradient(layout, own, layout.views(layout.zeros())[0].reshape(-1)))
        exact = not first <= step < 4 or first == 1
        large.end_step()
        assert torch.equal(gradient[0], grad) == exact
        assert len(module.entries) == LargeContainers.SIZE + step
    assert ("changes what lies in a list of 68 entries in place, but did not at step 1" in caplog.text) == (first > 1)


def test_silence_takes_everything():
    silence = Silence()
    silence.experiment.add_scalar("loss", 1.0)
    silence["key"] = silence.finish()["other"]


class Net(nn.Module):
    """Dropout, batch statistics, tied, frozen and unused parameters, a fused RNN, a parameter in a plain list."""

    def __init__(self, width):
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.rnn = nn.LSTM(width, width, batch_first=True)
        self.norm = nn.BatchNorm1d(width)
        self.back = nn.Linear(width, width)
        self.tied = nn.Linear(width, width)
        self.tied.weight = self.back.weight
        self.frozen = nn.Linear(width, width).requires_grad_(False)
        self.unused = nn.Linear(2, 2)
        self.listed = nn.Parameter(torch.ones(width))
        self.aliases = [self.listed]

    def forward(self, x):
        hidden, _ = self.rnn(self.embed(x).unsqueeze(1))
        hidden = self.norm(nn.functional.dropout(hidden.squeeze(1), 0.5, self.training))
        return self.tied(self.frozen(self.back(hidden))) * self.aliases[0]


@settings(max_examples=20, deadline=None)
@given(width=st.integers(1, 5), batches=st.integers(1, 3), seed=st.integers(0, 1000))
def test_the_gradient_of_a_window_is_that_of_autograd(width, batches, seed):
    """At other parameters, with the masks of the own pass: what a copy of the module gives that is moved there."""
    torch.manual_seed(seed)
    module = Net(width)
    parameters = [p for p in module.parameters() if p.requires_grad]
    window = MicroBatches(parameters, partial(Snapshot, module, leave=parameters), LargeContainers())
    layout = FlatLayout(parameters)
    at = layout.write([torch.randn_like(p) for p in parameters], out=layout.zeros())
    elsewhere = copy.deepcopy(module)
    layout.read(at, [p.data for p in elsewhere.parameters() if p.requires_grad])
    for x in torch.randn(batches, 3, 4):
        window.append(x)
        elsewhere(x).square().sum().backward()  # draws the same mask as the own pass would
    before = copy.deepcopy(module.state_dict())

    for _ in range(2):  # the second time in another buffer
        gradient = window.gradient(layout, lambda x: module(x).square().sum().backward(), at)
        for p, view in zip((p for p in elsewhere.parameters() if p.requires_grad), layout.views(gradient), strict=True):
            torch.testing.assert_close(view, torch.zeros_like(p) if p.grad is None else p.grad)
    assert same(dict(module.state_dict()), dict(before))
    assert all(p.grad is None for p in module.parameters())


def test_a_failing_pass_gives_the_parameters_back():
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad, data = torch.ones(2), parameter.data
    with pytest.raises(KeyError), moved([parameter], [torch.zeros(2)]):
        raise KeyError
    assert parameter.data_ptr() == data.data_ptr() and torch.equal(parameter.grad, torch.ones(2))
