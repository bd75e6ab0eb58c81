"""SLURM's signal before the time limit comes at any moment: the agents save at the end of the step and go on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import SLURMEnvironment

import cga_lightning as cga
from tests.lightning.test_launching import ROOT, free_port
from tests.toys import QUIET, Classifier, OwnData, one_class_each

AGENTS = 2
SIGNALS = 20
REQUEUE = Path(__file__).with_name("requeue_script.py")
pytestmark = [pytest.mark.timeout(200), pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint")]


@pytest.fixture
def job(tmp_path, monkeypatch):
    """The environment of a job, whose `scontrol` notes what it is called with."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/requeued\n')
    scontrol.chmod(0o755)
    variables = {"JOB_ID": "12", "JOB_NAME": "training", "NNODES": "1", "NODEID": "0", "PROCID": "0", "LOCALID": "0"}
    for name, value in (variables | {"NTASKS": "1", "NTASKS_PER_NODE": "1"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("PATH", f"{scontrol.parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


class Signalled(Classifier):
    """Gets the signal in the middle of one training step, of every agent that runs it."""

    def __init__(self, signalled_at=None):
        super().__init__()
        self.signalled_at = signalled_at

    def on_after_backward(self):
        if self.global_step == self.signalled_at:
            os.kill(os.getpid(), signal.SIGUSR1)


def simulated(folder, module, **options):
    """The models of all agents at the end of six steps, of 4 in an epoch."""
    own = cga.SimulatedStrategy(AGENTS)
    options = QUIET | {"max_steps": 6, "max_epochs": -1, "default_root_dir": folder} | options
    trainer = pl.Trainer(strategy=own, devices=1, **options)
    trainer.fit(module, datamodule=OwnData(one_class_each(AGENTS)))
    return own.agent_state_dicts(), trainer


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_simulation_saves_between_steps(job, accumulated):
    whole, _ = simulated(job / "whole", Classifier(), accumulate_grad_batches=accumulated)
    found, _ = simulated(job / "run", Signalled(3), accumulate_grad_batches=accumulated)
    torch.testing.assert_close(found, whole, rtol=0, atol=0)
    (path,) = (job / "run").glob("*.ckpt")
    assert path.name == "hpc_ckpt_1.ckpt" and torch.load(path, weights_only=False)["global_step"] == 4
    assert (job / "requeued").read_text() == "requeue 12\n"
    resumed, trainer = simulated(job / "run", Signalled(4), accumulate_grad_batches=accumulated, max_steps=5)
    assert trainer.global_step == 5 and len((job / "requeued").read_text().splitlines()) == 2, "from there on"


def test_the_signal_after_the_last_step(job):
    class Late(Signalled):
        def on_train_epoch_end(self):
            os.kill(os.getpid(), signal.SIGUSR1)

    _, trainer = simulated(job, Late(), max_steps=4)
    (path,) = job.glob("*.ckpt")
    assert torch.load(path, weights_only=False)["global_step"] == 4 == trainer.global_step


def test_a_job_that_does_not_want_it(job):
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        simulated(job, Signalled(3), plugins=[SLURMEnvironment(auto_requeue=False)])
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert not list(job.glob("*.ckpt"))


def tasks(job):
    """The tasks of a job, as SLURM would start them."""
    shared = {"SLURM_NTASKS": str(AGENTS), "SLURM_NTASKS_PER_NODE": str(AGENTS)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    options = {"cwd": ROOT, "stdin": subprocess.DEVNULL}
    command = [sys.executable, "-m", "tests.lightning.requeue_script", str(job)]
    ranks = [{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(AGENTS)]
    return [subprocess.Popen(command, env=os.environ | shared | rank, **options) for rank in ranks]


def wait_for(*paths):
    deadline = time.monotonic() + 100
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline, f"{paths} are not there"
        time.sleep(0.01)


def test_processes_save_together_whenever_the_signal_comes(job):
    """Every time, though it reaches them in different steps; then the job goes on from the last file."""
    started = tasks(job)
    wait_for(*(job / f"started{rank}" for rank in range(AGENTS)))
    for number in range(1, SIGNALS + 1):
        for task in started:
            task.send_signal(signal.SIGUSR1)
            time.sleep(0.003 * (number % 5))
        wait_for(job / f"hpc_ckpt_{number}.ckpt.agents" / f"0000{AGENTS - 1}.pt", job / f"hpc_ckpt_{number}.ckpt")
    (job / "enough").touch()
    for task in started:
        assert task.wait(60) == 0
    steps = [torch.load(job / f"hpc_ckpt_{n}.ckpt", weights_only=False)["global_step"] for n in range(1, SIGNALS + 1)]
    assert steps == sorted(set(steps)) and len(list(job.glob("*.ckpt"))) == SIGNALS
    assert (job / "requeued").read_text() == SIGNALS * "requeue 12\n"
    for task in tasks(job):
        assert task.wait(60) == 0
    assert [(job / f"from{rank}").read_text() for rank in range(AGENTS)] == [str(steps[-1])] * AGENTS
