"""Messages that are computed one by one: each once, with the state of their algorithm, sent as soon as it is there."""

from __future__ import annotations

import multiprocessing
import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import cga_lightning as cga
from cga_lightning.core import Agent, LazyMessages, LocalCommunicator, ProcessGroupCommunicator, Step, StepDriver
from cga_lightning.core.communication import GlooWire
from tests.quadratics import Quadratics, train


@given(st.lists(st.integers(0, 9), unique=True), st.lists(st.integers(0, 9), max_size=20))
def test_each_is_computed_once_when_it_is_asked_for(ranks: list[int], asked: list[int]) -> None:
    computed: list[int] = []
    messages = LazyMessages(ranks, lambda rank: computed.append(rank) or torch.tensor(rank))
    assert list(messages) == sorted(ranks) and len(messages) == len(ranks) and not computed
    wanted = [rank for rank in asked if rank in ranks]
    assert [int(messages[rank]) for rank in wanted] == wanted
    assert computed == list(dict.fromkeys(wanted))


class Counts(cga.Algorithm):
    """Sends its model times a number that its state has, computed when it is sent or before."""

    exchanges = ("models",)

    def __init__(self, lazy: bool, early: bool) -> None:
        self.lazy, self.early = lazy, early

    def step(self, agent: Agent) -> Step:
        if not self.early:
            yield {rank: agent.params for rank in agent.neighbors}
        outbox = LazyMessages(agent.neighbors, lambda rank: self._message(agent), agent.params)
        models = yield outbox if self.lazy else dict(outbox)
        agent.mix(models)

    @staticmethod
    def _message(agent: Agent) -> Tensor:
        agent.state["sent"] = agent.state.get("sent", 0) + 1
        return agent.params + 0.01 * agent.state["sent"] * agent.grad


@pytest.mark.parametrize("early", [False, True])
def test_lazy_or_not_makes_no_difference(early: bool) -> None:
    """Also inside a wrapper, and in the first exchange, where the gradient is not there yet."""
    lazy, eager = (
        train(
            Quadratics(4, 1.0),
            cga.QuasiGlobalMomentum(cga.WireDtype(Counts(lazy, early), torch.float32)),
            cga.Ring(4),
            lambda step: 0.05,
            12,
        )
        for lazy in (True, False)
    )
    assert torch.equal(lazy, eager)


class Resized(cga.Algorithm):
    """Talks at some steps only, in messages whose length changes, and keeps what it has received until the next."""

    exchanges = ("models", "parts")

    def step(self, agent: Agent) -> Step:
        echo = 0.1 * sum(message.sum() for message in agent.state.get("last", {}).values())
        models = yield {rank: agent.params for rank in agent.neighbors}
        if agent.step % 3:
            part = agent.params[: 1 + agent.step // 4]
            kept = yield {rank: part for rank in agent.neighbors}
            agent.grad = agent.grad + sum(message.sum() for message in kept.values())
        agent.grad = agent.grad + echo
        agent.state["last"] = dict(models)  # which may be overwritten from the same exchange of the next step on
        agent.mix(models)


def run_driver(problem: Quadratics, agents: list[Agent], algorithm: cga.Algorithm, communicator: object) -> None:
    driver = StepDriver(algorithm, agents, communicator)  # type: ignore[arg-type]
    for _ in range(12):
        models = driver.begin()
        driver.finish([agent.gradient(at=model) for agent, model in zip(agents, models, strict=True)])
        for agent in agents:
            agent.params -= 0.02 * agent.grad
        driver.end()


def one_process(rank: int, agents: int, algorithm: cga.Algorithm, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=agents)
    problem = Quadratics(agents, 1.0)
    own = [problem.agents(cga.Ring(agents))[rank]]
    wire = GlooWire(rank, timedelta(seconds=30))
    run_driver(problem, own, algorithm, ProcessGroupCommunicator(wire))
    torch.save(own[0].params, folder / f"{rank}.pt")
    wire.close()
    dist.destroy_process_group()
    os._exit(0)


@pytest.mark.parametrize("algorithm", [Resized(), Counts(True, False), cga.CGA(compressor="scaled_sign"), cga.NGC()])
def test_processes_compute_what_one_process_does(algorithm: cga.Algorithm, tmp_path: Path) -> None:
    """To the bit, though memory of messages is used again and receives are posted a step ahead."""
    problem = Quadratics(3, 1.0)
    agents = problem.agents(cga.Ring(3))
    run_driver(problem, agents, algorithm, LocalCommunicator())
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=one_process, args=(rank, 3, algorithm, tmp_path)) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    for rank, agent in enumerate(agents):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt"), agent.params)
