"""Processes that Lightning, torchrun or SLURM start, on one node or two; several loops in one script; notebooks."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cga_lightning as cga
from tests.lightning.launch_script import AGENTS, loops

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(200)


@pytest.fixture(scope="module")
def expected():
    return loops(cga.SimulatedStrategy(AGENTS), devices=1)[0]


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def together(commands):
    """Run them at the same time; they end well."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PL_"))}
    options = {"cwd": ROOT, "stdin": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen(command, env=environment | {"PYTHONPATH": path} | variables, **options)
        for command, variables in commands
    ]
    for process in started:
        _, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors


def script(devices, nodes, folder):
    return ["-m", "tests.lightning.launch_script", str(devices), str(nodes), str(folder / "found")]


def torchrun(folder, nodes, node, port):
    options = [f"--nnodes={nodes}", f"--node-rank={node}", f"--nproc-per-node={AGENTS // nodes}"]
    options += ["--master-addr=127.0.0.1", f"--master-port={port}"]
    return [sys.executable, "-m", "torch.distributed.run", *options, *script(AGENTS // nodes, nodes, folder)], {}


def slurm(folder, rank, port):
    variables = {
        "SLURM_JOB_ID": "1234",
        "SLURM_JOB_NAME": "training",
        "SLURM_NTASKS": str(AGENTS),
        "SLURM_NTASKS_PER_NODE": str(AGENTS),
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return [sys.executable, *script(AGENTS, 1, folder)], variables


def start_nodes(folder, node, port):
    """One node of two without any launcher."""
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": str(node)}
    return [sys.executable, *script(1, 2, folder)], variables


LAUNCHES = {
    "script": ("LightningEnvironment", lambda folder, _: [([sys.executable, *script(AGENTS, 1, folder)], {})]),
    "two nodes": ("LightningEnvironment", lambda folder, port: [start_nodes(folder, node, port) for node in (0, 1)]),
    "torchrun": ("TorchElasticEnvironment", lambda folder, port: [torchrun(folder, 1, 0, port)]),
    "torchrun on two nodes": (
        "TorchElasticEnvironment",
        lambda folder, port: [torchrun(folder, 2, node, port) for node in (0, 1)],
    ),
    "SLURM": ("SLURMEnvironment", lambda folder, port: [slurm(folder, rank, port) for rank in range(AGENTS)]),
}
SLOW = ("two nodes", "torchrun", "SLURM")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in LAUNCHES])
def test_several_loops_in_one_script(name, expected, tmp_path):
    environment, commands = LAUNCHES[name]
    together(commands(tmp_path, free_port()))
    for rank in range(AGENTS):
        found = torch.load(tmp_path / f"found{rank}")
        assert found["launched by"] == environment and found["steps"] == expected["steps"] == 8
        assert found["losses"] == pytest.approx(expected["losses"], abs=1e-5)
        assert found["losses"] != pytest.approx(found["losses"][:1] * 3, abs=1e-3)
        for key in ("weights", "predictions"):
            torch.testing.assert_close(found[key], expected[key], rtol=0, atol=1e-5)


BUSY = """
import pytorch_lightning as pl, torch, warnings, cga_lightning
from tests.toys import QUIET, Classifier, OwnData, one_class_each
warnings.simplefilter("ignore")
pl.Trainer(strategy="cga", devices=2, max_epochs=1, **QUIET).fit(Classifier(), datamodule=OwnData(one_class_each(2)))
for _ in range(50):
    torch.distributed.all_reduce(torch.zeros(200_000), async_op=True)
"""


def test_a_process_may_end_while_messages_travel(tmp_path):
    path = tmp_path / "busy.py"
    path.write_text(BUSY)
    together([([sys.executable, str(path)], {})])


NOTEBOOK = """
import pytorch_lightning as pl, warnings, cga_lightning
from tests.toys import QUIET, Classifier, OwnData, one_class_each
warnings.simplefilter("ignore")
try:
    pl.Trainer(strategy="cga", devices=2, **QUIET)
except ValueError as error:
    print("refused:", error)

trainer = pl.Trainer(strategy="cga_notebook", devices=2, max_epochs=1, **QUIET)
trainer.fit(Classifier(), datamodule=OwnData(one_class_each(2)))
print("trained in", trainer.state.status)
"""


def test_notebooks():
    """An interactive interpreter, as a notebook is one; strategies that run the script again are refused."""
    options = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 180, "stdin": subprocess.DEVNULL}
    found = subprocess.run([sys.executable, "-i", "-c", NOTEBOOK], **options)
    assert "not compatible with an interactive environment" in found.stdout, found.stderr
    assert "Use Trainer(strategy='cga_notebook')" in found.stdout
    assert "trained in TrainerStatus.FINISHED" in found.stdout, found.stderr
