"""Every precision of Lightning, in processes and simulated in one."""

from contextlib import nullcontext
from datetime import timedelta

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch.amp import GradScaler

import cga_lightning as cga
from tests.toys import QUIET, Classifier, OwnData, SaveOwnWeights, largest_difference, one_class_each

AGENTS = 3


class ScaledFloat32(MixedPrecision):
    """The path of 16-mixed with its scaler, but in float32 maths, so that it can be compared exactly."""

    def __init__(self, **scaler):
        super().__init__("16-mixed", "cpu", GradScaler("cpu", **scaler))

    def forward_context(self):
        return nullcontext()


class OwnScale(pl.Callback):
    """Another scale on every agent, from the first step on."""

    def on_train_start(self, trainer, pl_module):
        trainer.precision_plugin.scaler._init_scale = 2.0 ** (8 + 3 * trainer.global_rank)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 1:  # the agents exist now
            for resident in trainer.strategy._training.residents:
                resident.scaler._scale.fill_(2.0 ** (8 + 3 * resident.agent.rank))


class Scales(SaveOwnWeights):
    """Also the scales that the agents end with."""

    def on_train_end(self, trainer, pl_module):
        super().on_train_end(trainer, pl_module)
        torch.save(trainer.precision_plugin.state_dict(), self.folder / f"scale{trainer.global_rank}.pt")

    def scales(self):
        return [torch.load(self.folder / f"scale{rank}.pt")["scale"] for rank in range(AGENTS)]


def data():
    return OwnData(one_class_each(AGENTS))


def run(kind, folder, module=None, datamodule=None, callbacks=(), **options):
    """The agents' own weights, and their loss scales if there are any."""
    simulated, save = kind == "simulated", Scales(folder)
    algorithm = cga.CGA(margin=0.0)
    own = cga.SimulatedStrategy(AGENTS, algorithm)
    processes = cga.DecentralizedStrategy(algorithm, start_method="fork", timeout=timedelta(seconds=30))
    options = QUIET | {"max_epochs": 2, "gradient_clip_val": 0.3, "accumulate_grad_batches": 2} | options
    devices = 1 if simulated else AGENTS
    strategy = own if simulated else processes
    trainer = pl.Trainer(strategy=strategy, devices=devices, callbacks=[save, *callbacks], **options)
    trainer.fit(module or Classifier(), datamodule=datamodule or data())
    if not simulated:
        return save.load(AGENTS), save.scales() if "plugins" in options else []
    scalers = [resident.scaler for resident in own._training.residents]
    return own.agent_state_dicts(), [scaler.get_scale() for scaler in scalers if scaler is not None]


@pytest.fixture(scope="module")
def float32(tmp_path_factory):
    return run("simulated", tmp_path_factory.mktemp("float32"))[0]


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("64-true", 1e-6), ("bf16-mixed", 0.03), ("bf16-true", 0.05), ("16-true", 0.01)]
)
@pytest.mark.parametrize("kind", ["simulated", "processes"])
def test_precisions(kind, precision, tolerance, float32, tmp_path):
    states, _ = run(kind, tmp_path, precision=precision)
    assert 0 < largest_difference(states, float32) <= tolerance
    kept = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}
    assert states[0]["net.0.weight"].dtype == kept.get(precision, torch.float32)


@pytest.mark.parametrize("kind", ["simulated", "processes"])
def test_a_scale_of_its_own_on_every_agent_changes_nothing(kind, float32, tmp_path):
    states, scales = run(kind, tmp_path, callbacks=[OwnScale()], plugins=ScaledFloat32())
    assert largest_difference(states, float32) <= 1e-6
    assert scales == [2.0**8, 2.0**11, 2.0**14]


class Overflowing(OwnData):
    """One batch of agent 1 is out of range."""

    def __init__(self):
        super().__init__(one_class_each(AGENTS))
        self.datasets[1].tensors[0][4:8] = -1e38


class Linear(Classifier):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(6, 4)
        torch.nn.init.constant_(self.net.weight, 0.1)
        torch.nn.init.zeros_(self.net.bias)


def test_an_overflow_skips_the_step_of_one_agent_only(tmp_path):
    options = {"max_epochs": 1, "accumulate_grad_batches": 1, "gradient_clip_val": None}
    (tmp_path / "processes").mkdir()
    processes, scales = run(
        "processes", tmp_path / "processes", Linear(), Overflowing(), plugins=ScaledFloat32(init_scale=64.0), **options
    )
    simulated, own_scales = run(
        "simulated", tmp_path, Linear(), Overflowing(), plugins=ScaledFloat32(init_scale=64.0), **options
    )
    assert scales == own_scales == [64.0, 32.0, 64.0]
    assert all(torch.isfinite(value).all() for state in processes for value in state.values())
    assert largest_difference(processes, simulated) <= 1e-6
