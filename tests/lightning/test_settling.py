"""Agents that settle before they are tested or handed out: a simulation like processes, and training as without."""

from datetime import timedelta

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader

import cga_lightning as cga
from tests.toys import QUIET, Classifier, OwnData, largest_difference, one_class_each

AGENTS = 5
KINDS = pytest.mark.parametrize("kind", ["processes", "simulated"])


class Data(OwnData):
    def val_dataloader(self):
        return DataLoader(ConcatDataset(self.datasets), batch_size=20)


class Module(Classifier):
    """Also with running statistics, a counter, a mask and a half-precision buffer of each agent's own."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.register_buffer("mask", torch.tensor([torch.finfo(torch.float32).min, -torch.inf, 0.1]))
        self.register_buffer("short", torch.zeros(3, dtype=torch.bfloat16))
        self.register_buffer("validated", torch.zeros(()))

    def training_step(self, batch, batch_idx):
        self.short += 1.0 + self.trainer.global_rank
        return super().training_step([self.norm(batch[0]), batch[1]], batch_idx)

    def validation_step(self, batch, batch_idx):
        self.validated += 1
        super().validation_step([self.norm(batch[0]), batch[1]], batch_idx)


class Record(pl.Callback):
    """What is handed out at the end of training, the loss of the last validation, and the bytes sent."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        states = trainer.strategy.agent_state_dicts()
        seen = float(trainer.callback_metrics.get("val_loss", torch.nan)), dict(trainer.strategy.traffic)
        torch.save((states, *seen), self.folder / f"{trainer.global_rank}.pt")


def fit(kind, folder, module=None, topology="ring", **options):
    """The agents' weights that are handed out, the loss logged last, and the bytes that one process has sent."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("settle", "eval_model")
    given = {name: options.pop(name) for name in names if name in options}
    if kind == "simulated":
        strategy = cga.SimulatedStrategy(AGENTS, "cga", topology, **given)
    else:
        patience = timedelta(seconds=30)
        strategy = cga.DecentralizedStrategy("cga", topology, start_method="fork", timeout=patience, **given)
    torch.manual_seed(0)
    settings = QUIET | {"max_epochs": 2, "devices": AGENTS if kind == "processes" else 1} | options
    trainer = pl.Trainer(strategy=strategy, callbacks=[Record(folder)], **settings)
    trainer.fit(module or Classifier(), datamodule=Data(one_class_each(AGENTS)))
    found = [torch.load(path) for path in sorted(folder.glob("*.pt"))]
    states, losses, traffic = zip(*found, strict=True)
    return [state for part in states for state in part], losses[0], traffic[0]


def mixed(states, matrix):
    """Each agent's weighted mean of all."""
    names = [name for name, value in states[0].items() if value.is_floating_point()]
    stacked = {name: torch.stack([state[name].double() for state in states]) for name in names}
    return [
        {name: torch.tensordot(row, stacked[name], 1).float() for name in names}
        for row in torch.from_numpy(matrix).double()
    ]


@KINDS
def test_as_many_rounds_as_eigenvalues_reach_the_mean(kind, tmp_path):
    own, _, without = fit(kind, tmp_path / "own")
    settled, _, traffic = fit(kind, tmp_path / "settled", settle=2)
    mean = mixed(own, torch.full((AGENTS, AGENTS), 1 / AGENTS).numpy())
    assert largest_difference(settled, mean) < 1e-6
    assert largest_difference(own, mean) > 1e-3
    model = sum(value.nbytes for value in own[0].values())
    senders = AGENTS if kind == "simulated" else 1
    assert traffic["settle"] == senders * 2 * 2 * model  # two rounds, two neighbors
    assert [traffic[name] == without[name] > 0 for name in cga.CGA.exchanges] == [True, True]
    assert "settle" not in without


@KINDS
@pytest.mark.parametrize("options", [{"settle": 1}, {"eval_model": "mixed"}], ids=str)
def test_one_round(kind, options, tmp_path):
    own, _, _ = fit(kind, tmp_path / "own")
    settled, _, _ = fit(kind, tmp_path / "settled", **options)
    mixing, eye = cga.Ring(AGENTS).mixing_matrix(), torch.eye(AGENTS, dtype=torch.float64).numpy()
    eigenvalues = cga.Ring(AGENTS).eigenvalues()
    root = (eigenvalues[0] + eigenvalues[-2]) / 2 if "settle" in options else 0.0
    assert largest_difference(settled, mixed(own, (mixing - root * eye) / (1 - root))) < 1e-6


@pytest.mark.parametrize("settle", [1, 2])
def test_processes_equal_the_simulation(settle, tmp_path):
    found = [
        fit(kind, tmp_path / kind, Module(), settle=settle, eval_model="own") for kind in ("simulated", "processes")
    ]
    (simulated, loss, _), (processes, other, _) = found
    for name in simulated[0]:
        for a, b in zip(simulated, processes, strict=True):
            if name != "short":  # which tells the processes apart by their ranks
                torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=0, equal_nan=True)
    assert loss == pytest.approx(other, abs=1e-6)
    assert torch.equal(simulated[0]["mask"], Module().mask)


@KINDS
@pytest.mark.parametrize("eval_model", ["own", "mixed"])
def test_agents_are_validated_as_they_are_handed_out(kind, eval_model, tmp_path):
    options = {"eval_model": eval_model} | ({"settle": 2} if eval_model == "own" else {})
    states, logged, _ = fit(kind, tmp_path, **options)
    inputs, classes = next(iter(DataLoader(ConcatDataset(one_class_each(AGENTS)), batch_size=1000)))
    module, losses = Classifier(), []
    for state in states:
        module.load_state_dict(state)
        losses.append(nn.functional.cross_entropy(module.net(inputs), classes).item())
    assert logged == pytest.approx(sum(losses) / AGENTS, abs=1e-5)


@KINDS
def test_buffers_written_in_a_validation_stay_with_the_agents(kind, tmp_path):
    states, _, _ = fit(kind, tmp_path, Module(), settle=2, eval_model="own", num_sanity_val_steps=0)
    assert [float(state["validated"]) for state in states] == [pytest.approx(2 * 4)] * AGENTS


@KINDS
def test_training_and_what_is_saved_to_go_on_stay_as_they_are(kind, tmp_path):
    saved = []
    for settle in (0, 3):
        folder = tmp_path / str(settle)
        checkpoints = pl.callbacks.ModelCheckpoint(folder / "checkpoints", filename="last")
        strategy = (
            cga.SimulatedStrategy(AGENTS, "cga", settle=settle, eval_model="own")
            if kind == "simulated"
            else cga.DecentralizedStrategy("cga", start_method="fork", settle=settle, eval_model="own")
        )
        torch.manual_seed(0)
        options = QUIET | {"max_epochs": 2, "enable_checkpointing": True, "callbacks": [checkpoints]}
        devices = 1 if kind == "simulated" else AGENTS
        trainer = pl.Trainer(strategy=strategy, devices=devices, **options)
        trainer.fit(Module(), datamodule=Data(one_class_each(AGENTS)))
        path = folder / "checkpoints" / "last.ckpt"
        shards = [torch.load(f"{path}.agents/{rank:05d}.pt", weights_only=False) for rank in range(AGENTS)]
        saved.append((torch.load(path, weights_only=False), shards))
    (consensus, agents), (consensus_settled, agents_settled) = saved
    assert_same(consensus["state_dict"], consensus_settled["state_dict"])
    for a, b in zip(agents, agents_settled, strict=True):
        for part in ("state_dict", "optimizer_states", "algorithm"):
            assert_same(a[part], b[part])


def assert_same(first, second):
    """To the bit, whatever they are."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first.nan_to_num(), second.nan_to_num()) and torch.equal(first.isnan(), second.isnan())
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        for a, b in zip(first, second, strict=True):
            assert_same(a, b)
    else:
        assert first == second


class AmidSteps(pl.Callback):
    """Asks for the agents while messages of a step are under way."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx % 2 == 0:
            trainer.strategy.agent_state_dicts()


@KINDS
def test_agents_may_settle_while_a_step_is_under_way(kind, tmp_path):
    expected = fit(kind, tmp_path / "a", accumulate_grad_batches=2, settle=2)[0]
    strategy = (
        cga.SimulatedStrategy(AGENTS, "cga", settle=2)
        if kind == "simulated"
        else cga.DecentralizedStrategy("cga", start_method="fork", settle=2, timeout=timedelta(seconds=30))
    )
    torch.manual_seed(0)
    folder = tmp_path / "b"
    folder.mkdir()
    options = QUIET | {"max_epochs": 2, "accumulate_grad_batches": 2, "callbacks": [AmidSteps(), Record(folder)]}
    trainer = pl.Trainer(strategy=strategy, devices=1 if kind == "simulated" else AGENTS, **options)
    trainer.fit(Classifier(), datamodule=Data(one_class_each(AGENTS)))
    found = [state for path in sorted(folder.glob("*.pt")) for state in torch.load(path)[0]]
    assert largest_difference(found, expected) == 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"settle": -1}, ValueError, "settle must be a number of gossip rounds of at least 0, got -1"),
        ({"settle": True}, TypeError, "an int, got True"),
        ({"settle": 2, "eval_model": "mixed"}, ValueError, "use eval_model='own'"),
        (
            {"settle": 2, "topology": "directed_ring", "algorithm": "sgp"},
            ValueError,
            r"need an undirected topology .* DirectedRing\(3\) must be symmetric",
        ),
    ],
)
def test_refused(options, error, message):
    with pytest.raises(error, match=message):
        cga.SimulatedStrategy(3, **options)
