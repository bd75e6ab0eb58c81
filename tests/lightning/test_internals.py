"""Every private name of Lightning that is used is in internals.py, and the installed Lightning still has it."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from torch.utils.data import DataLoader

import cga_lightning
from cga_lightning.lightning import internals
from cga_lightning.lightning.trees import TREES
from tests.toys import QUIET

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # advice about loaders, of both trees

PACKAGE = Path(cga_lightning.__file__).parent
ONE = QUIET | {"devices": 1, "max_epochs": 1}


@pytest.fixture(params=TREES)
def pl(request: pytest.FixtureRequest) -> Any:
    return pytest.importorskip(request.param)


def lacks(what: str, user: str) -> str:
    """The message for what Lightning had, and `user` in internals.py needs."""
    version = importlib.import_module("pytorch_lightning").__version__
    return f"Lightning {version} no longer has {what}; see cga_lightning/lightning/internals.py: {user}"


def reach(start: Any, path: str, user: str) -> Any:
    for name in path.split("."):
        assert hasattr(start, name), lacks(f"{getattr(start, '__name__', type(start).__name__)}.{name}", user)
        start = getattr(start, name)
    return start


class Steps:
    """With a LightningModule, a module that keeps what its hook for batches has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[Any] = []

    def on_before_batch_transfer(self, batch, dataloader_idx):
        self.seen.append(batch)
        return batch

    def training_step(self, batch, batch_idx):
        return self.layer(torch.cat(batch) if isinstance(batch, list) else batch).sum()

    def validation_step(self, batch, batch_idx):
        return None

    test_step = predict_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make_module(pl: Any) -> Any:
    return type("Module", (Steps, pl.LightningModule), {})()


def strategies(pl: Any, **methods: Callable[..., Any]) -> Iterator[Any]:
    """One on top of each strategy that ours stand on, with these methods of its own."""
    for base, arguments in ((pl.strategies.DDPStrategy, {}), (pl.strategies.SingleDeviceStrategy, {"device": "cpu"})):
        strategy = type("Strategy", (base,), methods)(**arguments)
        strategy._layer_sync = None  # as AgentStrategy has it
        yield strategy


def at(pl: Any, hook: str, function: Callable[[Any], Any]) -> tuple[Any, list[Any]]:
    """A callback, and what `function(trainer)` has returned at every call of this hook."""
    found: list[Any] = []
    return type("AtHook", (pl.Callback,), {hook: lambda _, trainer, *__: found.append(function(trainer))})(), found


def loader(batches: int = 3) -> DataLoader:
    return DataLoader(torch.arange(float(batches)).view(batches, 1))


# --- the names that Lightning has


def test_leave_samplers(pl: Any) -> None:
    trainer, name = pl.Trainer(**ONE), "_accelerator_connector.use_distributed_sampler"
    assert reach(trainer, name, "leave_samplers") is True
    internals.leave_samplers(trainer)
    assert reach(trainer, name, "leave_samplers") is False
    decides = inspect.getsource(type(reach(trainer, "_data_connector", "leave_samplers")))
    assert f"trainer.{name}" in decides, lacks(f"a data connector that asks trainer.{name}", "leave_samplers")


@pytest.mark.parametrize("sync_batchnorm", [False, True])
def test_layer_sync(pl: Any, sync_batchnorm: bool) -> None:
    for strategy in strategies(pl):
        pl.Trainer(**ONE, strategy=strategy, sync_batchnorm=sync_batchnorm)
        found = internals.layer_sync(strategy) is not None
        assert found == sync_batchnorm, lacks("Strategy._layer_sync, set in Trainer(...)", "layer_sync")


def test_use_launcher(pl: Any) -> None:
    for strategy in strategies(pl):
        launcher = launcher_class(pl)(strategy)
        internals.use_launcher(strategy, launcher)
        assert strategy.launcher is launcher, lacks("Strategy._launcher behind Strategy.launcher", "use_launcher")


def stages(pl: Any, **options: Any) -> tuple[Any, list[str | None]]:
    """A Trainer, and what `new_loader_stage` says of every loader that it asks its strategy to process."""
    found: list[str | None] = []

    def process_dataloader(self: Any, dataloader: Any) -> Any:
        found.append(internals.new_loader_stage(self.lightning_module.trainer))
        return dataloader

    _, strategy = strategies(pl, process_dataloader=process_dataloader)
    trainer = pl.Trainer(**ONE | options, strategy=strategy)
    reach(trainer, "fit_loop._combined_loader", "new_loader_stage")
    reach(trainer, "fit_loop._should_reload_train_dl", "new_loader_stage")
    return trainer, found


@pytest.mark.parametrize("fitting", [["train", "validation"], ["validation", "train"]])
def test_new_loader_stage(pl: Any, fitting: list[str]) -> None:
    """Of every loop, and of validation before training, which is the sanity check."""
    trainer, found = stages(pl, num_sanity_val_steps=fitting.index("train"))
    trainer.fit(make_module(pl), loader(), loader())
    trainer.validate(make_module(pl), loader(), verbose=False)
    trainer.test(make_module(pl), loader(), verbose=False)
    trainer.predict(make_module(pl), loader())
    assert found == [*fitting, "validation", "test", None], lacks("these stages of loaders", "new_loader_stage")


def test_new_loader_stage_with_a_new_loader_in_every_epoch(pl: Any) -> None:
    trainer, found = stages(pl, max_epochs=2, reload_dataloaders_every_n_epochs=1)
    module = make_module(pl)
    module.train_dataloader = loader
    trainer.fit(module)
    assert found == ["train", "train"], lacks("_FitLoop._should_reload_train_dl", "new_loader_stage")


@pytest.mark.parametrize("loaders", [loader(), [loader(), loader()]], ids=["one", "several"])
def test_train_loaders(pl: Any, loaders: Any) -> None:
    callback, found = at(pl, "on_train_start", internals.train_loaders)
    trainer = pl.Trainer(**ONE, callbacks=callback)
    reach(trainer, "fit_loop._combined_loader", "train_loaders")
    assert internals.train_loaders(trainer) is None, lacks("_FitLoop._combined_loader, None at first", "train_loaders")
    trainer.fit(make_module(pl), loaders)
    assert found == [loaders], lacks("_FitLoop._combined_loader.iterables", "train_loaders")


def test_load_train_data_again(pl: Any) -> None:
    callback, _ = at(pl, "on_train_epoch_start", lambda trainer: trainer.current_epoch and again(trainer))
    trainer = pl.Trainer(**ONE | {"max_epochs": 2}, callbacks=callback)
    reach(trainer, "fit_loop._combined_loader_states_to_load", "load_train_data_again")
    module, asked = make_module(pl), []
    module.train_dataloader = lambda: asked.append(None) or loader()

    def again(trainer: Any) -> None:
        internals.load_train_data_again(trainer)
        trainer.fit_loop.setup_data()

    trainer.fit(module)
    assert len(asked) == 2, lacks("_FitLoop._combined_loader, made anew where it is None", "load_train_data_again")
    source = inspect.getsource(type(trainer.fit_loop))
    assert "_load_state_dicts(self._combined_loader_states_to_load)" in source, lacks(
        "_FitLoop._combined_loader_states_to_load", "load_train_data_again"
    )


def requeueing(pl: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A Trainer in a job of SLURM."""
    for name in ("JOB_ID", "NTASKS", "NNODES"):
        monkeypatch.setenv(f"SLURM_{name}", "1")
    environment = importlib.import_module(f"{pl.__name__}.plugins.environments").SLURMEnvironment()
    return pl.Trainer(**ONE, plugins=[environment])


def test_await_requeue(pl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the handler, which the Trainer still sets and takes back."""
    told: list[int] = []
    name = "_signal_connector._slurm_sigusr_handler_fn"
    for trainer, expected in [(pl.Trainer(**ONE), []), (requeueing(pl, monkeypatch), [signal.SIGUSR1])]:
        reach(trainer, name, "await_requeue")
        reach(trainer, "_accelerator_connector.cluster_environment", "await_requeue")
        told.clear()
        assert internals.await_requeue(trainer, lambda number, _: told.append(number)) == bool(expected)
        connector = trainer._signal_connector
        connector.register_signal_handlers()
        if expected:
            signal.raise_signal(signal.SIGUSR1)
        connector.teardown()
        assert told == expected, lacks(f"a use of Trainer.{name}", "await_requeue")
    assert not internals.await_requeue(trainer, None) and "_slurm_sigusr_handler_fn" not in vars(connector)


def test_requeue(pl: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trainer = requeueing(pl, monkeypatch)
    saved: list[str] = []
    monkeypatch.setattr(trainer, "save_checkpoint", saved.append)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "scontrol").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "scontrol").chmod(0o755)
    internals.await_requeue(trainer, lambda *_: None)
    internals.requeue(trainer, signal.SIGUSR1)
    assert len(saved) == 1, lacks("_SignalConnector._slurm_sigusr_handler_fn(signum, frame), which saves", "requeue")


def test_has_validation(pl: Any) -> None:
    callback, found = at(pl, "on_fit_start", internals.has_validation)
    trainer = pl.Trainer(**ONE, callbacks=callback)
    reach(trainer, "fit_loop.epoch_loop.val_loop._data_source", "has_validation")
    trainer.fit(make_module(pl), loader(1), loader(1))
    trainer.fit(make_module(pl), loader(1))
    assert found == [True, False], lacks("_DataLoaderSource.is_defined()", "has_validation")


def test_await_sigterm(pl: Any) -> None:
    """In place of the handler that waits for the other processes."""
    trainer, told = pl.Trainer(**ONE), []
    name = "_signal_connector._sigterm_notifier_fn"
    usual = reach(trainer, name, "await_sigterm").__func__
    assert "dist.broadcast(sigterm_tensor, src=0)" in inspect.getsource(usual), "there is nothing to replace any more"
    internals.await_sigterm(trainer, lambda: told.append(1))
    before = signal.getsignal(signal.SIGTERM)
    connector = trainer._signal_connector
    connector.register_signal_handlers()
    signal.raise_signal(signal.SIGTERM)
    connector.teardown()
    assert told == [1] and not trainer.received_sigterm, lacks(f"a use of Trainer.{name}", "await_sigterm")
    assert signal.getsignal(signal.SIGTERM) == before


def test_terminate(pl: Any) -> None:
    trainer = pl.Trainer(**ONE)
    reach(trainer, "_signal_connector.received_sigterm", "terminate")
    with pytest.raises(pl.utilities.exceptions.SIGTERMException):
        internals.terminate(trainer)
    assert trainer.received_sigterm


def test_returns_to_tuner(pl: Any) -> None:
    finder = pl.callbacks.LearningRateFinder()
    assert not internals.returns_to_tuner(finder)
    name = "LearningRateFinder._early_exit, which a Tuner sets"
    assert reach(finder, "_early_exit", "returns_to_tuner") is False
    assert "_early_exit = True" in inspect.getsource(pl.tuner.tuning), lacks(name, "returns_to_tuner")
    finder._early_exit = True
    assert internals.returns_to_tuner(finder)


def test_is_accumulating(pl: Any) -> None:
    callback, found = at(pl, "on_train_batch_end", internals.is_accumulating)
    trainer = pl.Trainer(**ONE, callbacks=callback, accumulate_grad_batches=2)
    reach(trainer, "fit_loop._should_accumulate", "is_accumulating")
    trainer.fit(make_module(pl), loader(3))
    assert found == [True, False, False], lacks("_FitLoop._should_accumulate()", "is_accumulating")


def test_before_batches(pl: Any) -> None:
    trainer, acts = pl.Trainer(**ONE), []
    name = "fit_loop.epoch_loop._broadcast_sigterm_tensor"
    broadcast = reach(trainer, name, "before_batches").__func__
    source = inspect.getsource(type(trainer.fit_loop.epoch_loop).advance)
    assert re.search(r"world_size > 1:\s+self._broadcast_sigterm_tensor\(\)", source), lacks(name, "before_batches")
    assert "torch.distributed.broadcast(sigterm_tensor, src=0)" in inspect.getsource(broadcast)
    internals.before_batches(trainer, lambda: acts.append(trainer.received_sigterm) or False)
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()
    assert acts == [False]


def test_batches_as_usual(pl: Any) -> None:
    trainer = pl.Trainer(**ONE)
    loop, acts = trainer.fit_loop.epoch_loop, []
    usual = loop._broadcast_sigterm_tensor
    internals.before_batches(trainer, lambda: acts.append(1) or False)
    assert loop._broadcast_sigterm_tensor != usual
    for _ in range(2):
        internals.batches_as_usual(trainer)
        assert loop._broadcast_sigterm_tensor == usual


def logging_module(pl: Any) -> Any:
    """Logs a mean over batches, a maximum, a torchmetrics object, what is for process 0 only and what is no average."""

    def validation_step(self: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("mean", batch.sum(), batch_size=2, on_step=True, on_epoch=True)
        self.log("largest", batch.sum(), reduce_fx=max, sync_dist=True)
        self.metric(batch.sum())
        self.log("metric", self.metric)
        self.log("zero", batch.sum(), rank_zero_only=True)
        self.log("step", batch.sum(), on_step=True, on_epoch=False)

    module = make_module(pl)
    module.metric = torchmetrics.MeanMetric()
    type(module).validation_step = validation_step
    type(module).on_validation_epoch_end = lambda self: self.log("end", 1.0)
    return module


def validated(pl: Any, loaders: list[DataLoader], act: Callable[[Any], None]) -> Any:
    """A Trainer that has validated, with `act` before the means."""
    trainer, module = pl.Trainer(**ONE), logging_module(pl)
    reach(trainer, "_logger_connector.update_eval_epoch_metrics", "before_means")
    internals.before_means(trainer, lambda: act(trainer))
    (trainer.returned, *_) = trainer.validate(module, loaders, verbose=False)
    return trainer


@pytest.mark.parametrize("loaders", [1, 2])
def test_before_means(pl: Any, loaders: int) -> None:
    acts: list[Any] = []
    metrics = "_logger_connector._callback_metrics"
    validated(pl, [loader()] * loaders, lambda trainer: acts.append(dict(reach(trainer, metrics, "before_means"))))
    assert len(acts) == loaders + 1, lacks("calls of update_eval_epoch_metrics after each loader", "before_means")
    assert acts[0] == {}, lacks("means only after update_eval_epoch_metrics", "before_means")


def test_means_as_usual(pl: Any) -> None:
    acts: list[Any] = []
    trainer = validated(pl, [loader()], acts.append)
    internals.means_as_usual(trainer)
    trainer.validate(logging_module(pl), loader(), verbose=False)
    assert len(acts) == 2


def test_logged_values(pl: Any) -> None:
    seen: list[dict[str, Any]] = []

    def act(trainer: Any) -> None:
        values = internals.logged_values(trainer)
        seen.append({key: (v.names, v.reduction, v.sync_dist) for key, v in values.items()})
        for key, value in values.items():
            if value.reduction is None:
                value.compute()
            elif key == "validation_step.mean" and len(seen) == 1:
                assert [float(total) for total in value.total] == [6.0, 6]
                value.set(torch.tensor(7.0))

    returned = validated(pl, [loader()], act).returned
    name = "_ResultCollection.valid_items, _forked_name, and _ResultMetric as before"
    assert seen[0] == {
        "validation_step.mean": ({"mean", "mean_epoch"}, "mean", False),
        "validation_step.largest": ({"largest"}, "max", False),  # there is one process only
        "validation_step.metric": ({"metric"}, None, False),
    }, lacks(name, "logged_values")
    assert seen[1].keys() - seen[0].keys() == {"on_validation_epoch_end.end"}, lacks(name, "logged_values")
    expected = {"mean_epoch": 7.0, "largest": 2.0, "metric": 1.0, "zero": 1.0, "end": 1.0}
    assert {key: returned[key] for key in expected} == expected, lacks("_ResultMetric._computed", "logged_values")


def test_attributes_of_lightning(pl: Any) -> None:
    module, set_by_us = make_module(pl), {"log", "_on_before_batch_transfer", "on_train_batch_end"}
    names = internals.attributes_of_lightning(module)
    needed = set_by_us | {"_trainer", "_current_fx_name", "_metric_attributes"}
    assert needed <= names, lacks(f"{needed - names} of a LightningModule", "attributes_of_lightning")
    assert not names & {"_parameters", "_buffers", "_modules", "training", "layer", "seen"}
    before = {*vars(module), "_hparams"}  # the user's, made when somebody asks for them
    callback, found = at(pl, "on_train_batch_end", lambda trainer: set(vars(trainer.lightning_module)) - before)
    pl.Trainer(**ONE, callbacks=callback).fit(module, loader())
    assert not set().union(*found) - names, lacks("only these attributes in a module", "attributes_of_lightning")


def test_is_overridden(pl: Any) -> None:
    module = make_module(pl)
    assert internals.is_overridden(module, "on_before_batch_transfer")
    assert not internals.is_overridden(module, "on_train_batch_end"), lacks("LightningModule", "is_overridden")
    module.on_train_batch_end = lambda *_: None
    assert internals.is_overridden(module, "on_train_batch_end")


def transferred(pl: Any, before: Callable[[Any], None]) -> list[type]:
    """What the user's hook sees of a training batch of two and of a validation batch, once `before` has run."""
    module = make_module(pl)
    reach(module, "_on_before_batch_transfer", "transfer_one_by_one")
    callback, _ = at(pl, "on_fit_start", lambda _: before(module))
    trainer = pl.Trainer(**ONE, callbacks=callback, num_sanity_val_steps=0)
    trainer.fit(module, [loader(1), loader(1)], loader(1))
    return [type(batch) for batch in module.seen]


def test_transfer_one_by_one(pl: Any) -> None:
    found = transferred(pl, internals.transfer_one_by_one)
    name = "loops that call LightningModule._on_before_batch_transfer for every batch"
    assert found == [torch.Tensor, torch.Tensor, torch.Tensor], lacks(name, "transfer_one_by_one")


def test_transferring_as_usual(pl: Any) -> None:
    def done_and_undone(module: Any) -> None:
        internals.transfer_one_by_one(module)
        internals.transferring_as_usual(module)

    assert transferred(pl, done_and_undone) == [list, torch.Tensor]


def test_interrupt(pl: Any) -> None:
    reach(importlib.import_module(f"{pl.__name__}.trainer.call"), "_interrupt", "interrupt")
    told: list[BaseException] = []
    for strategy in strategies(pl, on_exception=lambda _, exception: told.append(exception)):
        callback, found = at(pl, "on_exception", lambda trainer: trainer.state.status)
        trainer, error = pl.Trainer(**ONE, strategy=strategy, callbacks=callback), ValueError()
        internals.interrupt(trainer, error)
        assert found == ["interrupted"], lacks("call._interrupt(trainer, exception) with its status", "interrupt")
        assert told[-1:] == [error], lacks("a call of Strategy.on_exception in call._interrupt", "interrupt")


def launcher_class(pl: Any) -> Any:
    return reach(pl.strategies.launchers, "_MultiProcessingLauncher", "MultiProcessingLauncher")


def test_multi_processing_launcher(pl: Any) -> None:
    kind, name = launcher_class(pl), internals.MultiProcessingLauncher.__name__
    assert kind.__name__ == name
    arguments = [*inspect.signature(kind).parameters]
    assert arguments == ["strategy", "start_method"], lacks(
        f"{name}({', '.join(arguments)})", "MultiProcessingLauncher"
    )


# --- the names that Lightning calls or sets on objects of ours


def test_hook_configure_launcher(pl: Any) -> None:
    called: list[Any] = []
    for strategy in strategies(pl, _configure_launcher=lambda self: called.append(self)):
        pl.Trainer(**ONE, strategy=strategy)
        assert called[-1:] == [strategy], lacks("a call of Strategy._configure_launcher in Trainer(...)", "HOOKS")
        reach(super(type(strategy), strategy), "_configure_launcher", "HOOKS")


def test_hook_layer_sync(pl: Any) -> None:
    seen: list[Any] = []
    for strategy in strategies(pl, _configure_launcher=lambda self: seen.append(self._layer_sync)):
        pl.Trainer(**ONE, strategy=strategy, sync_batchnorm=True)
        assert seen and seen.pop() is not None, lacks("Strategy._layer_sync, set before _configure_launcher", "HOOKS")


def test_hook_wrapping_function(pl: Any) -> None:
    parameters = inspect.signature(reach(launcher_class(pl), "_wrapping_function", "HOOKS")).parameters
    name = "_MultiProcessingLauncher._wrapping_function(process_idx, trainer, *args)"
    assert [*parameters][:3] == ["self", "process_idx", "trainer"], lacks(name, "HOOKS")
    assert {p.kind for p in parameters.values()} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}, lacks(name, "HOOKS")
    assert "self._wrapping_function" in inspect.getsource(launcher_class(pl).launch), lacks(f"a use of {name}", "HOOKS")


def test_hook_strategy(pl: Any) -> None:
    for strategy in strategies(pl):
        assert reach(launcher_class(pl)(strategy), "_strategy", "HOOKS") is strategy


def test_every_entry_has_a_test() -> None:
    functions = {f"test_{re.sub(r'(?<=[a-z])(?=[A-Z])', '_', name).lower()}" for name in internals.__all__}
    expected = functions - {"test_hooks"} | {f"test_hook{name}" for name in internals.HOOKS}
    missing = sorted(expected - globals().keys())
    assert not missing, f"tests/lightning/test_internals.py: add {missing[0]}, of what Lightning has to have for it"


# --- nowhere else

ALLOWED = {
    "_asdict": "collections.namedtuple: public in spite of its name",
    "_exit": "os",
    "_buffers": "torch.nn.Module: buffers are replaced without a copy",
    "_foreach_copy_": "torch: copies all parameters at once",
    "_lazy_clone": "torch: copies when somebody writes, which its storages can do since torch 2.3",
    "_C": "torch: where the next one is",
    "_data_address": "torch: where a tensor lies, without the right to write there",
    "_set_pg_timeout": "torch.distributed: public as set_timeout since torch 2.15",
}
"""Private names of others than Lightning, and whose they are."""

FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != Path(internals.__file__)]
PARSED = {path: ast.parse(path.read_text()) for path in FILES}


def is_private(name: str) -> bool:
    return name.startswith("_") and name.strip("_") != "" and not name.startswith("__")


def is_own(node: ast.expr) -> bool:
    """Whether this is self, cls or super()."""
    return ast.unparse(node) in ("self", "cls", "super()")


def defined(tree: ast.AST) -> set[str]:
    """The private names of functions, classes, variables, and attributes of self."""
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            names.add(node.attr)
    return set(filter(is_private, names))


def used(tree: ast.AST) -> Iterator[tuple[int, ast.expr | None, str]]:
    """Line, object and name of every use of a private attribute; no object for an import from Lightning."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            yield node.lineno, node.value, node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "delattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and is_private(str(name.value)):
                yield node.lineno, node.args[0], str(name.value)
        elif isinstance(node, ast.ImportFrom) and re.match(r"(pytorch_|)lightning(_fabric|)\b", node.module or ""):
            parts = [*str(node.module).split("."), *(alias.name for alias in node.names)]
            yield from ((node.lineno, None, part) for part in parts if is_private(part))


DEFINED = set[str]().union(*map(defined, PARSED.values()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_private_name_of_lightning_elsewhere(path: Path) -> None:
    """What a file reaches on other objects is its own, what on self is of the package."""
    here = defined(PARSED[path])
    for line, owner, name in used(PARSED[path]):
        known = DEFINED if owner is not None and is_own(owner) else here
        assert name in ALLOWED or (owner is not None and name in known), (
            f"{path.relative_to(PACKAGE)}, line {line}, uses {name}, which this package does not define"
            f"{' there' if name in DEFINED else ''}. If it is Lightning's, move the access into a function of "
            "lightning/internals.py, with a test here; if it is torch's, say why in ALLOWED of "
            "tests/lightning/test_internals.py."
        )


def test_what_is_allowed_is_used() -> None:
    names = {name for tree in PARSED.values() for _, _, name in used(tree)}
    assert not ALLOWED.keys() - names, "tests/lightning/test_internals.py: take it out of ALLOWED"


def private_names(kind: type) -> set[str]:
    """What the source of a class defines, or reads and sets on self."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    return defined(tree) | {name for _, owner, name in used(tree) if owner is not None and is_own(owner)}


def of_lightning() -> list[type]:
    """The classes of the package that stand on one of Lightning's."""
    modules = [module for name, module in sys.modules.items() if name.startswith("cga_lightning.lightning.")]
    found = {
        value
        for module in modules
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__.startswith("cga_lightning.") and lightning_bases(value)
    }
    return sorted(found, key=lambda kind: kind.__name__)


def lightning_bases(kind: type) -> list[type]:
    return [base for base in kind.__mro__ if re.match(r"(pytorch_|)lightning(_fabric|)\.", base.__module__)]


@pytest.mark.parametrize("kind", of_lightning(), ids=lambda kind: kind.__name__)
def test_private_names_that_lightning_has_too_are_hooks(kind: type) -> None:
    """An override that is meant stands in HOOKS; any other would be found out by its consequences."""
    for base in lightning_bases(kind):
        both = private_names(kind) & private_names(base) - internals.HOOKS.keys()
        assert not both, (
            f"{kind.__name__} and {base.__name__} of Lightning both have {', '.join(sorted(both))}. "
            "Rename it, or if Lightning is meant, add it to HOOKS in lightning/internals.py and test_hook... here."
        )


def test_there_are_classes_on_top_of_lightning() -> None:
    assert len(of_lightning()) >= 5
