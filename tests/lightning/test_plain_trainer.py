"""Agents with the same data end as a plain Trainer does, whatever the module writes in its training step.

A module is put together from random behaviors. Each of them changes something that the loss then depends on, so a
cross-gradient pass that starts from anything else than its own pass did, or leaves a trace, shows in the parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import cga_lightning as cga
from tests.toys import QUIET, mlp

AGENTS, STEPS = 3, 4


class Samples(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(index)
        return {"x": torch.randn(6, generator=generator), "y": torch.tensor(index % 4)}


class SameData(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        agents = len(getattr(self.trainer.strategy, "local_agents", [0]))
        loaders = [DataLoader(Samples(), batch_size=4) for _ in range(agents)]
        return loaders if agents > 1 else loaders[0]


class History:
    """An object of the user's own."""

    def __init__(self) -> None:
        self.seen = 0


class Composed(pl.LightningModule):
    def __init__(self, behaviors: list[str]) -> None:
        super().__init__()
        self.behaviors = behaviors
        self.net = mlp()
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(6), requires_grad=False)
        self.register_buffer("mean", torch.zeros(6))
        self.calls = 0
        self.hidden = torch.zeros(6)
        self.table = {"nested": [torch.zeros(6), 0]}
        self.memory: list[Tensor] = []
        self.array = np.zeros(6, dtype=np.float32)
        self.history = History()
        self.bank = {label: torch.zeros(6) for label in range(100)}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        y = batch["y"]
        with torch.no_grad():
            for behavior in self.behaviors:
                BEHAVIORS[behavior](self, batch)
        x = batch["x"]
        return nn.functional.cross_entropy(self.net(x) + self.teacher(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1, momentum=0.5)


def change_the_batch(module: Composed, batch: dict[str, Tensor]) -> None:
    batch["x"] /= 2


def pop_from_the_batch(module: Composed, batch: dict[str, Tensor]) -> None:
    batch["x"] = batch.pop("x") + batch.pop("y").unsqueeze(1) / 4


def count(module: Composed, batch: dict[str, Tensor]) -> None:
    module.calls += 1
    batch["x"] = batch["x"] * (1 + module.calls % 2)


def keep_a_hidden_state(module: Composed, batch: dict[str, Tensor]) -> None:
    module.hidden = (module.hidden + batch["x"].mean(0)).tanh()
    batch["x"] = batch["x"] + module.hidden


def write_into_a_nested_tensor(module: Composed, batch: dict[str, Tensor]) -> None:
    tensor, calls = module.table["nested"]
    tensor.mul_(0.5).add_(batch["x"].mean(0))
    module.table["nested"][1] = calls + 1
    batch["x"] = batch["x"] + tensor * calls


def grow_a_list(module: Composed, batch: dict[str, Tensor]) -> None:
    module.memory.append(batch["x"].mean(0))
    batch["x"] = batch["x"] + torch.stack(module.memory).sum(0)


def write_into_a_bank(module: Composed, batch: dict[str, Tensor]) -> None:
    for label in range(4):
        module.bank[label].mul_(0.5).add_(batch["x"].mean(0))
    batch["x"] = batch["x"] + module.bank[0]


def write_into_an_array(module: Composed, batch: dict[str, Tensor]) -> None:
    module.array += batch["x"].mean(0).numpy()
    batch["x"] = batch["x"] + torch.from_numpy(module.array.copy())


def count_in_an_object(module: Composed, batch: dict[str, Tensor]) -> None:
    module.history.seen += 1
    batch["x"] = batch["x"] / module.history.seen


def write_into_a_buffer(module: Composed, batch: dict[str, Tensor]) -> None:
    module.mean.lerp_(batch["x"].mean(0), 0.5)
    batch["x"] = batch["x"] - module.mean


def replace_a_buffer(module: Composed, batch: dict[str, Tensor]) -> None:
    module.mean = module.mean + batch["x"].mean(0)
    batch["x"] = batch["x"] - module.mean


def write_into_a_frozen_parameter(module: Composed, batch: dict[str, Tensor]) -> None:
    module.scale.data.mul_(0.9).add_(batch["x"].std(0))
    batch["x"] = batch["x"] * module.scale


def let_a_teacher_follow(module: Composed, batch: dict[str, Tensor]) -> None:
    for slow, fast in zip(module.teacher.parameters(), module.net.parameters(), strict=True):
        slow.lerp_(fast, 0.3)


def give_a_teacher_other_memory(module: Composed, batch: dict[str, Tensor]) -> None:
    for slow, fast in zip(module.teacher.parameters(), module.net.parameters(), strict=True):
        slow.data = slow.data * 0.5 + fast.data * 0.5


def clamp_what_is_trained(module: Composed, batch: dict[str, Tensor]) -> None:
    for parameter in module.net.parameters():
        parameter.clamp_(-0.2, 0.2)


def normalize_what_is_trained(module: Composed, batch: dict[str, Tensor]) -> None:
    weight = module.net[0].weight
    weight.data = nn.functional.normalize(weight.data, dim=1)


def mask_what_is_trained(module: Composed, batch: dict[str, Tensor]) -> None:
    module.net[2].weight[:, ::2] = 0


def initialize_what_is_trained_by_data(module: Composed, batch: dict[str, Tensor]) -> None:
    if not module.mean.any():
        module.mean.fill_(1e-3)
        module.net[0].bias.copy_(batch["x"].mean() * torch.ones(12))


Behavior = Callable[[Composed, dict[str, Tensor]], None]
SHOWN: list[Behavior] = [
    *(change_the_batch, pop_from_the_batch, write_into_a_buffer, replace_a_buffer, write_into_a_frozen_parameter),
    *(let_a_teacher_follow, give_a_teacher_other_memory, clamp_what_is_trained, normalize_what_is_trained),
    *(mask_what_is_trained, initialize_what_is_trained_by_data, count, keep_a_hidden_state, grow_a_list),
    *(write_into_a_nested_tensor, write_into_an_array, count_in_an_object, write_into_a_bank),
]
BEHAVIORS = {behavior.__name__: behavior for behavior in SHOWN}
ALGORITHMS = ("cga", "ngc", "dpsgd", "sgp", "swarmsgd", "gradient_tracking")


def trained(behaviors: list[str], strategy: Any = "auto", devices: int = 1) -> dict[str, Tensor]:
    module = Composed(behaviors)
    trainer = pl.Trainer(strategy=strategy, devices=devices, max_steps=STEPS, max_epochs=-1, **QUIET)
    trainer.fit(module, datamodule=SameData())
    return {name: value.clone() for name, value in module.state_dict().items()}


def compared(behaviors: list[str], strategy: Any, devices: int = 1) -> Iterator[tuple[str, Tensor, Tensor]]:
    plain, found = trained(behaviors), trained(behaviors, strategy, devices)
    return ((name, found[name], plain[name]) for name in plain)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from(sorted(BEHAVIORS)), min_size=1, max_size=4, unique=True),
    st.sampled_from(ALGORITHMS),
)
def test_in_a_simulation(behaviors: list[str], algorithm: str) -> None:
    for name, found, plain in compared(behaviors, cga.SimulatedStrategy(AGENTS, algorithm)):
        torch.testing.assert_close(found, plain, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("algorithm", ["cga", "dpsgd"])
def test_in_processes(algorithm: str, part: int) -> None:
    behaviors = sorted(BEHAVIORS)[part::3]
    for name, found, plain in compared(behaviors, cga.DecentralizedStrategy(algorithm, start_method="fork"), AGENTS):
        torch.testing.assert_close(found, plain, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
