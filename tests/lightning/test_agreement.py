"""Agents with validation data of their own stop, save and change their learning rate alike."""

from datetime import timedelta

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader

import cga_lightning as cga
from cga_lightning.lightning.agreement import DifferenceWarning
from tests.toys import QUIET, Classifier, OwnData, one_class_each

AGENTS = 3


class Module(Classifier):
    """Logs without sync_dist in every way, and follows what it has logged."""

    def validation_step(self, batch, batch_idx):
        loss = torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("val_loss", loss, False, None, False)
        self.log_dict({"rank": float(self.global_rank), "largest": float(self.global_rank)}, reduce_fx="max")
        self.log("mine", float(self.global_rank), rank_zero_only=True)

    test_step = validation_step

    def on_validation_epoch_end(self):
        self.log("at_the_end", float(self.global_rank))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}


class OwnValidation(OwnData):
    """Agent j validates on its own samples; agent 0 has fewer batches."""

    def __init__(self, empty=()):
        super().__init__(one_class_each(AGENTS))
        self.empty = empty

    def val_dataloader(self):
        rank = self.trainer.global_rank
        data = self.datasets[rank]
        chosen = range(0 if rank in self.empty else 8 if rank == 0 else 16)
        return DataLoader(torch.utils.data.Subset(data, chosen), batch_size=4)

    test_dataloader = val_dataloader


class Decisions(pl.Callback):
    """What each process has seen and decided."""

    def __init__(self, folder):
        self.folder, self.rates, self.metrics = folder, [], []

    def on_validation_end(self, trainer, pl_module):
        self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def on_train_epoch_end(self, trainer, pl_module):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_end(self, trainer, pl_module):
        decided = {
            "epochs": trainer.current_epoch,
            "best": trainer.checkpoint_callback.best_model_path,
            "score": float(trainer.checkpoint_callback.best_model_score),
            "rates": self.rates,
        }
        told = trainer.strategy._differences._told
        torch.save((decided, self.metrics, told, "log" in vars(pl_module)), self.folder / f"{trainer.global_rank}.pt")


def fit(folder, monitor="val_loss", data=None, **options):
    decisions = Decisions(folder)
    stop = EarlyStopping(monitor, patience=3, min_delta=0.5)
    best = ModelCheckpoint(folder, monitor=monitor, filename=f"{{epoch}}-{{{monitor}:.6f}}")
    strategy = cga.DecentralizedStrategy(start_method="fork", timeout=timedelta(seconds=30), **options)
    settings = QUIET | {"devices": AGENTS, "max_epochs": 6, "enable_checkpointing": True}
    trainer = pl.Trainer(strategy=strategy, callbacks=[decisions, stop, best], **settings)
    trainer.fit(Module(), datamodule=data or OwnValidation())
    reports = [torch.load(folder / f"{rank}.pt") for rank in range(AGENTS)]
    return trainer, [list(values) for values in zip(*reports, strict=True)]


@pytest.mark.parametrize("eval_model", ["consensus", "own"])
def test_own_validation_data(eval_model, tmp_path):
    trainer, (decisions, metrics, told, shadowed) = fit(tmp_path, eval_model=eval_model)
    assert decisions[0] == decisions[1] == decisions[2]
    assert 1 < decisions[0]["epochs"] < 6 and decisions[0]["rates"][-1] < decisions[0]["rates"][0]
    for seen in zip(*metrics, strict=True):
        assert {tuple(found[name] for name in ("val_loss", "largest", "rank", "at_the_end")) for found in seen} == {
            (seen[0]["val_loss"], 2.0, 2.0, 1.0)
        }
        assert seen[0]["mine"] == 0.0
    assert told == [set()] * AGENTS and shadowed == [False] * AGENTS
    if eval_model == "consensus":  # every sample of every agent counts once, as the best model measures again
        (tested,) = trainer.test(datamodule=OwnValidation(), ckpt_path="best", weights_only=False, verbose=False)
        assert tested["val_loss"] == pytest.approx(decisions[0]["score"], abs=1e-5)


def test_what_still_differs_is_told(tmp_path, caplog):
    _, (decisions, _, told, _) = fit(tmp_path, monitor="loss")
    assert told == [{"loss"}] * AGENTS
    assert len({decided["epochs"] for decided in decisions}) == 1
    warning = DifferenceWarning()
    for _ in range(2):
        warning.look_at([{"loss": 0.5, "equal": 1.0}, {"loss": 0.25, "equal": 1.0}])
    (record,) = caplog.records[-1:]
    assert "different values of 'loss': 0.5, 0.25" in record.message and "sync_dist=True" in record.message
    assert sum("different values" in record.message for record in caplog.records) == 1


class Divided(ModelCheckpoint):
    """The best checkpoint of agent 0 exists; the others would look elsewhere."""

    def on_train_end(self, trainer, pl_module):
        super().on_train_end(trainer, pl_module)
        if trainer.global_rank:
            self.best_model_path = "nowhere.ckpt"
        trainer.strategy.load_checkpoint(self.best_model_path, weights_only=False)  # as test(ckpt_path="best") does


def test_the_best_checkpoint_is_that_of_agent_0(tmp_path):
    strategy = cga.DecentralizedStrategy(start_method="fork", timeout=timedelta(seconds=30), resume="consensus")
    options = QUIET | {"devices": AGENTS, "max_epochs": 1, "enable_checkpointing": True}
    trainer = pl.Trainer(strategy=strategy, callbacks=[Divided(tmp_path)], **options)
    trainer.fit(Module(), datamodule=OwnValidation())
    assert trainer.checkpoint_callback.best_model_path.startswith(str(tmp_path))


def test_validation_data_for_some_agents_only(tmp_path):
    with pytest.raises(Exception, match="validation loader of agent 1, 2 has no batch, but those of others have"):
        fit(tmp_path, data=OwnValidation(empty=(1, 2)), eval_model="own")


class Differs(pl.Callback):
    """Agent 1 has another setting than the others."""

    def __init__(self, change):
        self.change = change

    def setup(self, trainer, pl_module, stage):
        if trainer.global_rank == 1:
            self.change(trainer, pl_module)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda trainer, _: setattr(trainer.fit_loop, "max_epochs", 3), r"max_epochs=2\), agent 1 has .*max_epochs=3"),
        (lambda trainer, _: setattr(trainer, "limit_val_batches", 1), "limit_val_batches"),
        (lambda trainer, _: trainer.callbacks.append(EarlyStopping("loss")), "EarlyStopping"),
    ],
)
def test_settings_that_decide_the_length_of_a_run_are_compared(change, found):
    strategy = cga.DecentralizedStrategy(start_method="fork", timeout=timedelta(seconds=60))
    trainer = pl.Trainer(strategy=strategy, callbacks=Differs(change), **QUIET | {"devices": AGENTS, "max_epochs": 2})
    with pytest.raises(Exception, match=f"agent 0 has .*{found}"):
        trainer.fit(Module(), datamodule=OwnValidation())
