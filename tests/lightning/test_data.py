from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, StackDataset, Subset, TensorDataset

from cga_lightning import PartitionedDataModule, SimulatedStrategy, partition
from cga_lightning.lightning.data import EpochSampler
from cga_lightning.lightning.labels import labels_of
from tests.toys import QUIET, Classifier

LABELS = torch.arange(60) % 10
DATA = TensorDataset(torch.arange(60.0).unsqueeze(1), LABELS)


def served(module, agents: int, local: list[int], epoch: int = 0) -> list[list[int]]:
    """The sample numbers that the loaders of the local agents serve."""
    strategy = SimpleNamespace(agents=agents, local_agents=local)
    module.trainer = SimpleNamespace(strategy=strategy, current_epoch=epoch)
    loaders = module.train_dataloader()
    return [
        [int(x) for batch in loader for x in batch[0].flatten()]
        for loader in (loaders if isinstance(loaders, list) else [loaders])
    ]


@pytest.mark.parametrize("name", ["by_label", "iid", partial(partition.dirichlet, alpha=0.5), "shards"])
def test_one_process_for_all_serves_what_a_process_each_serves(name) -> None:
    together = served(PartitionedDataModule(DATA, partition=name, batch_size=4), 5, [0, 1, 2, 3, 4])
    alone = [served(PartitionedDataModule(DATA, partition=name, batch_size=4), 5, [rank])[0] for rank in range(5)]
    assert together == alone
    assert sorted(sum(together, [])) == list(range(60))


def test_epochs_and_agents_differ_in_order_but_runs_repeat() -> None:
    parts = [range(0, 30), range(30, 60)]
    first, second = (served(PartitionedDataModule(DATA, partition=parts), 2, [0, 1], epoch=e) for e in (0, 1))
    assert first[0] != second[0] and sorted(first[0]) == sorted(second[0]) == list(range(30))
    assert [x - 30 for x in first[1]] != first[0]
    assert served(PartitionedDataModule(DATA, partition=parts), 2, [0, 1]) == first
    assert served(PartitionedDataModule(DATA, partition=parts, seed=1), 2, [0, 1]) != first


def test_the_order_is_a_function_of_the_epoch() -> None:
    sampler = EpochSampler(20, (0, 1))
    first = list(sampler)
    sampler.set_epoch(3)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first and len(sampler) == 20


class Targets(Dataset):
    targets = LABELS.tolist()


class Samples(Dataset):
    """Sixty samples, and attributes."""

    def __init__(self, sample, **attributes) -> None:
        self.sample = sample
        vars(self).update(attributes)

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int):
        return self.sample(index)


class Table(Samples):
    """A data set of Hugging Face, as far as we use it. Samples are images, which take long to read."""

    column_names = ("image", "label", "fine")

    def __init__(self, sample=None) -> None:
        super().__init__(sample)
        self.features = dict.fromkeys(self.column_names)

    def __getitem__(self, index):
        assert index in ("label", "fine"), "reads images"
        return [i % 10 if index == "label" else f"{i % 4}" for i in range(60)]


INPUT, INDEX, WEIGHT = torch.zeros(60, 2, 2), torch.arange(60), torch.arange(60) % 7 / 7
KINDS = {
    "tensors": DATA,
    "tensors, column": TensorDataset(INPUT, LABELS[:, None]),
    "tensors, one-hot": TensorDataset(INPUT, torch.eye(10)[LABELS]),
    "tensors, weights": TensorDataset(INPUT, LABELS, WEIGHT),
    "tensors, index": TensorDataset(INPUT, LABELS, INDEX),
    "tensors, mask": TensorDataset(INPUT, torch.ones(60, 5), LABELS),
    "targets": Targets(),
    "pairs": Samples(lambda i: (INPUT[i], int(LABELS[i]))),
    "pairs of tensors": Samples(lambda i: [INPUT[i], LABELS[i]]),
    "pairs, one-hot": Samples(lambda i: (INPUT[i], torch.eye(10)[LABELS[i]])),
    "triples, index": Samples(lambda i: (INPUT[i], i, int(LABELS[i]))),
    "triples, mask": Samples(lambda i: (INPUT[i], torch.zeros(8, 8), np.int64(LABELS[i]))),
    "no targets": Samples(lambda i: (INPUT[i], LABELS[i]), targets=None),
    "names of the classes": Samples(lambda i: (INPUT[i], LABELS[i]), labels=list("abcdefghij")),
    "targets of more samples": Samples(lambda i: (INPUT[i], LABELS[i]), targets=[0] * 70),
    "dicts": Samples(lambda i: {"x": INPUT[i], "y": LABELS[i]}),
    "list of dicts": [{"text": "a", "label": int(label)} for label in LABELS],
    "stacked": StackDataset(x=INPUT, target=LABELS),
    "table": Table(),
    "parts": ConcatDataset([Subset(DATA, range(20)), Samples(lambda i: (0, (i + 20) % 10))]),
}


@pytest.mark.parametrize("dataset", KINDS.values(), ids=KINDS)
def test_labels_are_found(dataset) -> None:
    found = labels_of(dataset)
    assert found.tolist() == (np.arange(len(found)) % 10).tolist()
    assert labels_of(Subset(Subset(dataset, torch.arange(59, -1, -1)), [3, 1])).tolist() == [6, 8]


def test_labels_may_be_strings_and_fractions() -> None:
    words, signs = Samples(lambda i: ("text", ["cat", "dog"][i % 2])), Samples(lambda i: (i, 0.6 if i % 2 else -0.6))
    for dataset in (words, signs):
        parts = PartitionedDataModule(dataset, partition="by_label").parts(2)
        assert [part.tolist() for part in parts] == [list(range(0, 60, 2)), list(range(1, 60, 2))]


def test_labels_by_name() -> None:
    assert labels_of(Table(), "fine").tolist() == [f"{i % 4}" for i in range(60)]
    assert labels_of(TensorDataset(INPUT, LABELS, INDEX), 2).tolist() == INDEX.tolist()
    assert labels_of(Samples(None, kinds=["a", "b"] * 30), "kinds").tolist() == ["a", "b"] * 30
    data = PartitionedDataModule(Samples(lambda i: {"class": i % 3, "label": 0}), labels="class")
    assert [set((part % 3).tolist()) for part in data.parts(3)] == [{0}, {1}, {2}]
    for dataset, field in ((KINDS["dicts"], "class"), (DATA, 2), (DATA, "class")):
        with pytest.raises(ValueError, match=f"labels={field!r} must be a column, an attribute, or a key or item"):
            labels_of(dataset, field)


UNLABELED = {
    "inputs": lambda i: INPUT[i],
    "dicts": lambda i: {"x": INPUT[i]},
    "masks": lambda i: (INPUT[i], torch.zeros(8, 8, dtype=torch.long)),
    "boxes": lambda i: (INPUT[i], {"boxes": torch.zeros(2, 4), "labels": torch.ones(2)}),
    "vectors": lambda i: (INPUT[i], WEIGHT[:2]),
    "nothing": lambda i: (INPUT[i], None),
    "multi-label": lambda i: (INPUT[i], [1, 2][: 1 + i % 2]),
}


@pytest.mark.parametrize("sample", UNLABELED.values(), ids=UNLABELED)
def test_iid_reads_no_sample(sample) -> None:
    def untouched(i):
        raise AssertionError("read a sample")

    for name in ("iid", partition.iid, partial(partition.iid)):
        parts = PartitionedDataModule(Samples(untouched), partition=name).parts(7)
        assert sorted(np.concatenate(parts).tolist()) == list(range(60))
    with pytest.raises(TypeError, match=r"Cannot find the labels of Samples: .*labels=\.\.\..* partition='iid'"):
        PartitionedDataModule(Samples(sample)).parts(2)


@pytest.mark.parametrize("target", [WEIGHT[INDEX * 7 % 60] + INDEX, torch.rand(60, 1)])
def test_targets_of_a_regression_are_no_classes(target) -> None:
    for dataset in (TensorDataset(INPUT, target), Samples(lambda i: (INPUT[i], float(target[i])))):
        with pytest.raises(ValueError, match="different values among 60 samples, such as .* regression. Use shards or"):
            PartitionedDataModule(dataset, partition="by_label").parts(4)
        assert len(PartitionedDataModule(dataset, partition="shards").parts(4)) == 4


@pytest.mark.parametrize("partition", ["by_label", "iid", lambda labels, agents, seed: [[0]] * agents])
@pytest.mark.parametrize("count", [40, 70])
def test_labels_of_another_length_are_refused(partition, count) -> None:
    with pytest.raises(ValueError, match=f"each of the 60 samples of train, got {count}"):
        PartitionedDataModule(DATA, partition=partition, labels=torch.zeros(count)).parts(2)


def test_data_without_labels_is_refused_with_the_ways_out() -> None:
    with pytest.raises(TypeError, match="partition='iid'"):
        PartitionedDataModule(TensorDataset(torch.zeros(8, 2, 2))).parts(2)


def test_a_partition_for_another_number_of_agents_is_refused() -> None:
    with pytest.raises(ValueError, match="has 2 parts of \\[3, 3\\] samples, but the run has 3 agents"):
        PartitionedDataModule(DATA, partition=[[0, 1, 2], [3, 4, 5]]).parts(3)
    with pytest.raises(ValueError, match="one non-empty part each"):
        PartitionedDataModule(DATA, partition=[[0, 1, 2], []]).parts(2)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([range(30), range(30, 50), range(50, 60)], "has 3 parts of \\[30, 20, 10\\] samples, but the run has 2"),
        ([range(60), []], "one non-empty part each"),
        ([LABELS == 0, LABELS > 0], "Part 0 .* from 0 to 59, got bool from False to True"),
        ([range(30), range(30, 61)], "Part 1 .* got int64 from 30 to 60"),
        ([range(30), range(-30, 0)], "Part 1 .* got int64 from -30 to -1"),
        ([[range(2)], [range(2)]], "Part 0 .* got int64 of the shape \\[1, 2\\]"),
        ([["a"], ["b"]], "Part 0 .* got <U1"),
        ({0: range(60), 2: range(60)}, "keys of a partition must be the 2 agents of the run, 0 to 1, got \\[0, 2\\]"),
        ({"a": range(60), "b": range(60)}, "give list\\(partition.values\\(\\)\\)"),
    ],
)
def test_a_partition_that_does_not_fit_is_refused(parts, message) -> None:
    for given in (parts, lambda labels, agents, seed: parts):
        with pytest.raises(ValueError, match=message):
            PartitionedDataModule(DATA, partition=given).parts(2)


@pytest.mark.parametrize(
    "parts",
    [
        {1: range(20, 60), 0: range(20)},
        [list(range(20)), list(range(20, 60))],
        [torch.arange(20), torch.arange(20, 60)],
        np.array([[*range(20)], [*range(20, 60)]], dtype=object),
        map(np.array, (range(20), range(20, 60))),
    ],
)
def test_forms_of_a_partition(parts) -> None:
    given = lambda labels, agents, seed: parts  # noqa: E731
    found = PartitionedDataModule(DATA, partition=given).parts(2)
    assert [part.tolist() for part in found] == [list(range(20)), list(range(20, 60))]
    assert all(part.dtype == np.int64 for part in found)


def test_dicts_of_agents_serve_batches() -> None:
    parts = {1: range(30, 60), 0: range(30)}
    assert [sorted(part) for part in served(PartitionedDataModule(DATA, partition=parts), 2, [0, 1])] == [
        list(range(30)),
        list(range(30, 60)),
    ]


class Counting(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.trained, self.validated = 0, 0

    def training_step(self, batch, batch_idx):
        self.trained += len(batch[0])
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.validated += len(batch[0])


def test_drop_last_drops_training_samples_only() -> None:
    inputs = TensorDataset(torch.randn(30, 6), torch.arange(30) % 2)
    data = PartitionedDataModule(inputs, Subset(inputs, range(5)), batch_size=8, loader_options={"drop_last": True})
    module = Counting()
    trainer = pl.Trainer(strategy=SimulatedStrategy(2, "dpsgd"), max_epochs=1, num_sanity_val_steps=0, **QUIET)
    trainer.fit(module, datamodule=data)
    assert (module.trained, module.validated) == (8, 5)  # by one agent, and by all together


@pytest.mark.parametrize("name", ["dataset", "batch_size", "shuffle", "sampler", "batch_sampler"])
def test_options_that_the_module_sets_itself_are_refused(name) -> None:
    with pytest.raises(ValueError, match=f"loader_options cannot have '{name}'"):
        PartitionedDataModule(DATA, loader_options={name: None})


class Stream(IterableDataset):
    def __iter__(self):
        return iter(DATA)

    def __len__(self) -> int:
        return 60


@pytest.mark.parametrize("train", [Stream(), iter([1, 2])])
def test_a_stream_has_no_parts(train) -> None:
    with pytest.raises(TypeError, match=f"needs a map-style dataset.* got a {type(train).__name__}"):
        PartitionedDataModule(train)


def test_a_strategy_without_agents_is_refused() -> None:
    module = PartitionedDataModule(DATA)
    module.trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    with pytest.raises(TypeError, match="found SingleDeviceStrategy"):
        module.train_dataloader()
