"""What agents with validation data of their own log: one value for all, by name; lone values and stops are named."""

from datetime import timedelta

import hypothesis.strategies as st
import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from hypothesis import given
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

import cga_lightning as cga
from cga_lightning.lightning.logged_means import Logged, combined, refuse_lone
from tests.toys import QUIET, Classifier, OwnData, one_class_each

AGENTS = 3


class OwnValidation(OwnData):
    """Agent j has 2, 4 or 6 batches of two samples, from one or two loaders."""

    def __init__(self, loaders=1):
        super().__init__(one_class_each(AGENTS))
        self.loaders = loaders

    def val_dataloader(self):
        data = torch.utils.data.Subset(self.datasets[self.trainer.global_rank], range(4 * self.trainer.global_rank + 4))
        return [DataLoader(data, batch_size=2) for _ in range(self.loaders)]


class Keep(pl.Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if name != "loss"}
        torch.save(values, self.folder / f"{trainer.global_rank}.pt")


def fit(folder, module, callbacks=(), loaders=1, timeout=60, **settings):
    """What every agent has logged."""
    strategy = cga.DecentralizedStrategy("dpsgd", start_method="fork", timeout=timedelta(seconds=timeout))
    settings = QUIET | {"max_epochs": 2, "devices": AGENTS} | settings
    trainer = pl.Trainer(strategy=strategy, callbacks=[Keep(folder), *callbacks], **settings)
    trainer.fit(module, datamodule=OwnValidation(loaders))
    return [torch.load(folder / f"{rank}.pt") for rank in range(AGENTS)]


class Logs(Classifier):
    """Agent j logs j + 1 in every batch, in an order of its own."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        rank = self.global_rank
        values = {"a": rank + 1.0, "b": 10.0 * (rank + 1), "c": 100.0 * (rank + 1)}
        for name in sorted(values, reverse=rank == 1):
            self.log(name, values[name], on_step=name == "b", on_epoch=True, sync_dist=name == "c")
        self.log(f"class {rank}", float(rank))
        if rank:
            self.log("class of 1 and 2", float(rank))
        self.log("most", rank, reduce_fx="max")
        self.log("batches", 1.0, reduce_fx="sum")


def expected(loader=""):
    samples = [4, 8, 12]
    mean = sum(n * (rank + 1.0) for rank, n in enumerate(samples)) / sum(samples)
    values = {"a": mean, "b": 10 * mean, "b_epoch": 10 * mean, "c": 100 * mean, "most": 2.0, "batches": 12.0}
    return [
        {name + loader: pytest.approx(value) for name, value in values.items()}
        | {f"class {rank}{loader}": float(rank)}
        | ({f"class of 1 and 2{loader}": pytest.approx((8 + 2 * 12) / 20)} if rank else {})
        for rank in range(AGENTS)
    ]


def test_means_by_name(tmp_path):
    assert fit(tmp_path, Logs()) == expected()


def test_means_by_name_of_several_loaders(tmp_path):
    found = fit(tmp_path, Logs(), loaders=2)
    assert found == [a | b for a, b in zip(expected("/dataloader_idx_0"), expected("/dataloader_idx_1"), strict=True)]


class LogsTest(Logs):
    def test_step(self, *batch):
        self.validation_step(*batch)

    on_test_epoch_end = lambda self: self.log("end", self.global_rank)  # noqa: E731


class OwnTest(OwnValidation):
    test_dataloader = OwnValidation.val_dataloader


class Returned(pl.Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_test_end(self, trainer, pl_module):
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        torch.save(values, self.folder / f"{trainer.global_rank}.pt")


def test_means_of_a_test_without_fit(tmp_path):
    strategy = cga.DecentralizedStrategy("dpsgd", start_method="fork")
    trainer = pl.Trainer(strategy=strategy, callbacks=[Returned(tmp_path)], **QUIET | {"devices": AGENTS})
    (returned,) = trainer.test(LogsTest(), datamodule=OwnTest(), verbose=False)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(AGENTS)]
    assert found == [values | {"end": 1.0} for values in expected()]
    assert {name: returned[name] for name in ("a", "b_epoch", "c", "end")} == {
        name: found[0][name] for name in ("a", "b_epoch", "c", "end")
    }


class Lone(Classifier):
    """One agent alone logs in this way; the others do not."""

    def __init__(self, how, agent):
        super().__init__()
        self.how, self.agent, self.metric = how, agent, torchmetrics.MeanMetric()

    def validation_step(self, batch, batch_idx):
        self.log("all", 1.0)
        self.metric(1.0)
        if self.global_rank == self.agent and self.how == "metric":
            self.log("alone", self.metric)
        elif self.global_rank == self.agent and self.how != "end":
            self.log("alone", 1.0, sync_dist=self.how == "sync_dist", rank_zero_only=self.how == "rank_zero_only")

    def on_validation_epoch_end(self):
        if self.global_rank == self.agent and self.how == "end":
            self.log("alone", 1.0)


MONITOR = ModelCheckpoint(monitor="alone", save_top_k=0)
ALONE = {
    "sync_dist": ((), "sync_dist=True asks for a value of all"),
    "metric": ((), "a torchmetrics object gathers its states from all"),
    "monitored": ([MONITOR], "ModelCheckpoint monitors it"),
    "end": ([MONITOR], "ModelCheckpoint monitors it"),
}


@pytest.mark.parametrize("agent", [0, 2])
@pytest.mark.parametrize("how", ALONE)
def test_what_one_agent_alone_logs_is_named(how, agent, tmp_path):
    callbacks, reason = ALONE[how]
    others = "1, 2" if agent == 0 else "0, 1"
    with pytest.raises(
        Exception, match=rf"'alone' was logged in .* by agent {agent}, but not by agent {others}, and {reason}"
    ):
        fit(tmp_path, Lone(how, agent), callbacks, enable_checkpointing=bool(callbacks))


def test_what_one_agent_alone_logs_for_itself(tmp_path):
    found = fit(tmp_path, Lone("rank_zero_only", 0))
    assert [values.get("alone") for values in found] == [1.0, None, None]
    assert all(values["all"] == 1.0 for values in found)


TOTALS = st.tuples(st.floats(-1e30, 1e30), st.integers(1, 1000))


@given(st.lists(TOTALS, min_size=1, max_size=9), st.sampled_from(["mean", "sum", "max", "min"]))
def test_combined(totals, reduction):
    logged = [Logged(total, weight, None) for total, weight in totals]
    values, weights = zip(*totals, strict=True)
    right = {"sum": sum(values), "max": max(values), "min": min(values), "mean": sum(values) / sum(weights)}[reduction]
    assert float(combined(logged, reduction)) == pytest.approx(right, rel=1e-12, abs=1e-12 * max(map(abs, values)))


@given(st.lists(st.dictionaries(st.sampled_from("xyz"), st.booleans()), min_size=1, max_size=5))
def test_refuse_lone(everyone):
    """All raise or none; by any name that some have and others lack, if one of them needs all."""
    logged = [
        {f"f.{key}": Logged(1.0, 1, "why" if needed else None) for key, needed in one.items()} for one in everyone
    ]
    lone = {
        key for one in everyone for key, needed in one.items() if needed and any(key not in other for other in everyone)
    }
    if lone:
        with pytest.raises(ValueError) as error:
            refuse_lone(logged)
        assert any(f"'{key}' was logged in f" in str(error.value) for key in lone)
    else:
        refuse_lone(logged)


class Stopping(pl.Callback):
    """Some agents set should_stop in one hook, once two steps are made."""

    def __init__(self, hook, agents):
        self.agents = agents
        setattr(self, hook, self.stop)

    def stop(self, trainer, *_):
        if trainer.global_rank in self.agents and trainer.global_step >= 2:
            trainer.should_stop = True


HOOKS = ["on_train_batch_start", "on_train_batch_end", "on_validation_end", "on_train_epoch_end"]


@pytest.mark.parametrize(("agents", "limit_val_batches"), [((0,), 1), ((1, 2), 1), ((0,), 0), ((1, 2), 0)])
@pytest.mark.parametrize("hook", HOOKS)
def test_agents_that_stop_alone_are_named(hook, agents, limit_val_batches, tmp_path):
    if hook == "on_validation_end" and not limit_val_batches:
        pytest.skip("there is no validation in which to stop")
    who, settings = ", ".join(map(str, agents)), {"limit_val_batches": limit_val_batches, "max_epochs": 4}
    with pytest.raises(Exception, match=f"After step [2-4] comes .*should_stop was set on agent {who} alone"):
        fit(tmp_path, Classifier(), [Stopping(hook, agents)], **settings)


@pytest.mark.parametrize("hook", HOOKS)
def test_agents_that_stop_together(hook, tmp_path):
    found = fit(tmp_path, Classifier(), [Stopping(hook, range(AGENTS))], max_epochs=4, min_epochs=2)
    assert len(found) == AGENTS and len({values["val_loss"] for values in found}) == 1


def test_agents_whose_settings_differ(tmp_path):
    class Sometimes(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            if trainer.global_rank == 1:
                trainer.val_check_batch = 2

    with pytest.raises(Exception, match="After step 2 comes the next batch on agent 0, 2, but a validation on agent 1"):
        fit(tmp_path, Classifier(), [Sometimes()])
