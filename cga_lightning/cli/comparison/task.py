"""What all runs of a comparison have in common: data, split once, and the module with its optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from cga_lightning.cli.comparison import images, networks
from cga_lightning.cli.comparison.specs import Spec, built, class_of

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"class_path": "SGD"},
    "momentum": {"class_path": "SGD", "init_args": {"momentum": 0.9}},
    "adam": {"class_path": "Adam"},
    "adamw": {"class_path": "AdamW"},
}
"""Names for optimizers of torch; "module" is that of the module's own `configure_optimizers`."""

Batches = list[tuple[Tensor, Tensor]]
"""Inputs and classes, to be tested on."""


class Task(NamedTuple):
    """Data of one comparison.

    Attributes:
        train: what the agents share out.
        validation: samples of the training data that no agent trains on; the learning rates are chosen on them.
        test: what is reported.
    """

    train: Dataset[Any]
    validation: Batches
    test: Batches


def load(data: str | Mapping[str, Any], root: str | None, download: bool, validation: float, test_samples: int) -> Task:
    """The data of a comparison, split: the same for all its runs, whatever their seeds.

    Args:
        data: one of `images.DATASETS`, or the specs of a `train` and a `test` data set of (input, class) pairs.
        root: the folder where images lie.
        download: fetch them if they are not there.
        validation: the share of the training data to choose learning rates on.
        test_samples: how many of the test data to use, drawn at random; 0 for all.

    Raises:
        FileNotFoundError: the data are not there.
        ValueError: a spec leads nowhere, or nothing is left to train or to validate on.
    """
    train, test = _datasets(data, root, download)
    order = np.random.default_rng(0).permutation(len(train)).tolist()  # type: ignore[arg-type]
    held_out = round(validation * len(order))
    if not 0 < held_out < len(order):
        raise ValueError(f"validation must leave data on both sides, got {validation} of {len(order)} samples.")
    drawn = np.random.default_rng(0).permutation(len(test)).tolist()  # type: ignore[arg-type]
    shown = Subset(test, sorted(drawn[: test_samples or None]))
    return Task(Subset(train, sorted(order[held_out:])), _batches(Subset(train, order[:held_out])), _batches(shown))


def _datasets(data: str | Mapping[str, Any], root: str | None, download: bool) -> tuple[Dataset[Any], Dataset[Any]]:
    if isinstance(data, str):
        train, test = images.load(data, root, download)
        return train.dataset(), test.dataset()
    if set(data) != {"train", "test"}:
        raise ValueError(f"data must be a name, or have a spec of train and one of test, got {', '.join(data)}.")
    made = partial(built, base=object, known={}, home="torchvision.datasets")
    return made("data.train", data["train"]), made("data.test", data["test"])


def _batches(dataset: Dataset[Any]) -> Batches:
    return [(inputs, classes) for inputs, classes in DataLoader(dataset, batch_size=500)]


def module_of(model: Spec, optimizer: Spec, lr: float, train: Dataset[Any]) -> pl.LightningModule:
    """The module of one run, with the optimizer of the comparison.

    Args:
        model: one of `networks.NETWORKS`, made for the images of `train`, or the spec of a LightningModule.
        optimizer: one of `OPTIMIZERS`, the spec of an optimizer without `lr`, or "module".
        lr: the learning rate; with "module", the argument `lr` of the module.
        train: the training data.

    Raises:
        ValueError: a spec leads nowhere.
    """
    if optimizer == "module":
        return _module(model, train, lr=lr)
    module = _module(model, train)
    spec = OPTIMIZERS.get(optimizer) if isinstance(optimizer, str) else optimizer
    if spec is None:
        raise ValueError(f"Unknown optimizer {optimizer!r}; known: {', '.join(OPTIMIZERS)}, module, or a class path.")
    kind = class_of("optimizer", spec, torch.optim.Optimizer, "torch.optim")
    settings = {**(spec.get("init_args") or {}), "lr": lr}
    module.configure_optimizers = lambda: kind(module.parameters(), **settings)  # type: ignore[method-assign]
    return module


def _module(model: Spec, train: Dataset[Any], **more: Any) -> pl.LightningModule:
    if isinstance(model, str) and model in networks.NETWORKS:
        channels, side = train[0][0].shape[:2]
        return networks.Classifier(networks.NETWORKS[model](channels, side, _classes(train)), **more)
    module: pl.LightningModule = built("model", model, pl.LightningModule, networks.NETWORKS, "__main__", **more)
    return module


def _classes(train: Dataset[Any]) -> int:
    from cga_lightning.lightning.labels import labels_of

    return int(labels_of(train).max()) + 1


@torch.no_grad()
def accuracy(module: pl.LightningModule, states: Sequence[Mapping[str, Tensor]], batches: Batches) -> Tensor:
    """Of the module with the tensors of each of `states`, float64 `[len(states)]`, in evaluation mode.

    Raises:
        ValueError: what the module returns for inputs are no scores of classes.
    """
    training = module.training
    module.eval()
    try:
        return torch.stack([_accuracy(module, state, batches) for state in states])
    finally:
        module.train(training)


def _accuracy(module: pl.LightningModule, state: Mapping[str, Tensor], batches: Batches) -> Tensor:
    hits = []
    for inputs, classes in batches:
        scores = torch.func.functional_call(module, dict(state), inputs)
        if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != len(classes):
            found = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(
                f"{type(module).__name__}.forward must give the scores of the classes [{len(classes)}, classes] for a "
                f"batch of inputs, got {found}."
            )
        hits.append(scores.argmax(1).eq(classes))
    return torch.cat(hits).double().mean()
