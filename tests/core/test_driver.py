"""The contract of an algorithm, held by the driver of a step: state, messages, gradients, exchanges."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.amp import GradScaler

import cga_lightning as cga
from cga_lightning.algorithms import ALGORITHMS, from_name, gossip
from cga_lightning.core import Agent, LocalCommunicator, OwnGradient, Step, StepDriver
from tests.quadratics import Quadratics, train

AGENTS = 4


def trained(algorithm: cga.Algorithm, steps: int = 20) -> Tensor:
    problem = Quadratics(AGENTS, heterogeneity=1.0)
    return train(problem, algorithm, cga.Complete(AGENTS), lr=lambda step: 0.02, steps=steps)


# --- a state of its own


class HeavyBall(cga.Algorithm):
    """Gossip with momentum, kept under a key of choice."""

    exchanges = ("models",)
    graphs = "balanced"

    def __init__(self, key: str = "momentum", beta: float = 0.5) -> None:
        self.key = key
        self.beta = beta

    def step(self, agent: Agent) -> Step:
        models = yield gossip(agent, agent.params)
        agent.state[self.key] = self.beta * agent.state.get(self.key, 0) + agent.grad
        agent.grad = agent.state[self.key].clone()
        agent.mix(models)


class Alternate(cga.Algorithm):
    """One of several algorithms at every step, kept in a list."""

    exchanges = ("models",)
    graphs = "balanced"

    def __init__(self, *algorithms: cga.Algorithm) -> None:
        self.algorithms = list(algorithms)

    def step(self, agent: Agent) -> Step:
        yield from self.algorithms[agent.step % len(self.algorithms)].step(agent)


@pytest.mark.parametrize("key", ["momentum", "start", "cross_gradients"])
def test_an_algorithm_inside_a_wrapper_may_use_any_key(key: str) -> None:
    wrapped, private = (trained(cga.QuasiGlobalMomentum(HeavyBall(name), beta=0.5)) for name in (key, "private"))
    assert torch.equal(wrapped, private)


def test_wrappers_around_each_other() -> None:
    twice = cga.QuasiGlobalMomentum(cga.QuasiGlobalMomentum(cga.DPSGD(), beta=0.0), beta=0.6)
    assert torch.equal(trained(twice), trained(cga.QuasiGlobalMomentum(cga.DPSGD(), beta=0.6)))


def test_algorithms_in_a_list_do_not_share_a_state() -> None:
    problem = Quadratics(AGENTS, heterogeneity=1.0)
    agents = problem.agents(cga.Complete(AGENTS))
    algorithm = Alternate(HeavyBall(), HeavyBall(beta=0.0))
    driver = StepDriver(algorithm, agents, LocalCommunicator())
    for _ in range(4):
        models = driver.begin()
        gradients = [agent.gradient(at=model) for agent, model in zip(agents, models, strict=True)]
        expected = gradients[0].clone()
        driver.finish(gradients)
        driver.end()
    torch.testing.assert_close(agents[0].grad, expected)  # the second one has no memory
    first, second = agents[0].state_dict()["state"]["inside"].values()
    assert not torch.equal(first["own"]["momentum"], second["own"]["momentum"])


class Doubled(HeavyBall):
    """Goes on from the step of its base class."""

    def step(self, agent: Agent) -> Step:
        yield from super().step(agent)
        assert "momentum" in agent.state
        agent.grad = 2 * agent.grad


def test_a_subclass_has_the_state_of_its_base_class() -> None:
    assert trained(Doubled()).isfinite().all()


def test_states_come_back() -> None:
    def fresh() -> tuple[list[Agent], StepDriver]:
        agents = Quadratics(AGENTS, heterogeneity=1.0).agents(cga.Complete(AGENTS))
        algorithm = cga.QuasiGlobalMomentum(cga.CGA(compressor=cga.ScaledSign()))
        return agents, StepDriver(algorithm, agents, LocalCommunicator())

    def run(agents: list[Agent], driver: StepDriver, steps: int) -> None:
        for _ in range(steps):
            models = driver.begin()
            driver.finish([agent.gradient(at=model) for agent, model in zip(agents, models, strict=True)])
            for agent in agents:
                agent.params -= 0.02 * agent.grad
            driver.end()

    straight, resumed = fresh(), fresh()
    run(*straight, 3)
    for agent, source in zip(resumed[0], straight[0], strict=True):
        agent.load_state_dict(copy.deepcopy(source.state_dict()))
        agent.params = source.params.clone()
    run(*straight, 3)
    run(*resumed, 3)
    for agent, source in zip(resumed[0], straight[0], strict=True):
        assert torch.equal(agent.params, source.params) and agent.step == source.step == 6


# --- messages


class Overwrites(cga.Algorithm):
    """Gossip of two messages per step; what was received is multiplied in place, or in a copy."""

    exchanges = ("models", "models")
    graphs = "balanced"

    def __init__(self, in_place: bool, factors: list[float]) -> None:
        self.in_place = in_place
        self.factors = factors

    def step(self, agent: Agent) -> Step:
        for factor in self.factors:
            received = yield gossip(agent, agent.params)
            if self.in_place:
                for message in received.values():
                    message.mul_(factor)
            else:
                received = {rank: message * factor for rank, message in received.items()}
            agent.mix(received)


@settings(max_examples=20, deadline=None)
@given(factors=st.lists(st.floats(0.1, 1.0), min_size=1, max_size=3))
def test_a_received_message_may_be_overwritten(factors: list[float]) -> None:
    assert torch.equal(trained(Overwrites(True, factors), 5), trained(Overwrites(False, factors), 5))


def test_what_happens_to_a_message_after_it_was_sent_changes_nothing() -> None:
    agents = Quadratics(2, heterogeneity=1.0).agents(cga.Complete(2))
    driver = StepDriver(cga.DPSGD(), agents, LocalCommunicator())
    for step in range(3):
        agents[1].params = agents[1].params + 1.0  # so that they differ
        mean = (agents[0].params + agents[1].params) / 2
        models = driver.begin()
        gradients = [agent.gradient(at=model) for agent, model in zip(agents, models, strict=True)]
        models[0].add_(1.0)  # as a forward pass that writes into its parameters
        driver.finish(gradients)
        driver.end()
        torch.testing.assert_close(agents[0].params, mean + 0.5)
        torch.testing.assert_close(agents[1].params, mean + (0.0 if step else 0.5))  # sent before, but for the first


# --- the own gradient


class SendsGradients(cga.Algorithm):
    """Averages gradients, which it needs before the first exchange."""

    exchanges = ("gradients",)
    graphs = "balanced"

    def step(self, agent: Agent) -> Step:
        agent.state["count"] = agent.state.get("count", 0) + 1
        agent.diagnostics["seen"] = torch.tensor(agent.state["count"])
        agent.params = agent.params + 1
        received = yield gossip(agent, agent.grad)
        agent.grad = agent.average(agent.grad, received)


class Periodic(SendsGradients):
    """Needs the gradient first at every other step only."""

    def step(self, agent: Agent) -> Step:
        if agent.step % 2:
            yield from super().step(agent)
        else:
            models = yield gossip(agent, agent.params)
            agent.mix(models)


@pytest.mark.parametrize("algorithm", [SendsGradients(), Periodic()], ids=lambda a: type(a).__name__)
def test_the_gradient_is_there_when_it_is_asked_for(algorithm: cga.Algorithm) -> None:
    agents = Quadratics(AGENTS, heterogeneity=1.0).agents(cga.Complete(AGENTS))
    driver = StepDriver(algorithm, agents, LocalCommunicator())
    for _ in range(4):
        models = driver.begin()
        before = [model.clone() for model in models]
        gradients = [agent.gradient(at=model) for agent, model in zip(agents, models, strict=True)]
        mean = torch.stack(gradients).mean(0)
        averages = isinstance(algorithm, SendsGradients) and (type(algorithm) is SendsGradients or agents[0].step % 2)
        driver.finish(gradients)
        if averages:
            torch.testing.assert_close(agents[0].grad, mean)
            torch.testing.assert_close(agents[0].params, before[0] + 1)  # once, though it had started twice
        driver.end()
    assert agents[0].state["count"] == (4 if type(algorithm) is SendsGradients else 2)


class Asks(cga.Algorithm):
    """Halves the gradient, with no exchange or with an empty one."""

    def __init__(self, empty: bool) -> None:
        self.empty = empty

    def step(self, agent: Agent) -> Step:
        if self.empty:
            yield {}
        agent.params = agent.params * 2
        agent.grad = agent.grad * 0.5
        yield from ()


@pytest.mark.parametrize("empty", [False, True])
def test_a_step_without_messages(empty: bool) -> None:
    agents = Quadratics(2, heterogeneity=1.0).agents(cga.Complete(2))
    driver = StepDriver(Asks(empty), agents, LocalCommunicator())
    start = agents[0].params.clone()
    driver.begin()
    directions = driver.finish([torch.ones(8, dtype=torch.float64)] * 2)
    driver.end()
    assert torch.equal(directions[0], torch.full((8,), 0.5, dtype=torch.float64))
    assert torch.equal(agents[0].params, 2 * start)


def test_a_gradient_that_nobody_asks_for_is_not_brought_together() -> None:
    agents = Quadratics(2, heterogeneity=1.0).agents(cga.Complete(2))
    driver = StepDriver(cga.DPSGD(), agents, LocalCommunicator())
    driver.begin()
    asked: list[int] = []
    own = [OwnGradient([torch.ones(8)], lambda rank=rank: asked.append(rank) or torch.ones(8)) for rank in range(2)]
    assert driver.finish(own) == [None, None] and not asked
    assert driver.diagnostics(agents[0])["gradient_norm"] == pytest.approx(8**0.5) and asked == [0]


class CountsInPlace(cga.Algorithm):
    """Adds to its parameters and to a counter in place; talks at every `period`-th step only."""

    exchanges = ("models",)

    def __init__(self, period: int) -> None:
        self.period = period

    def step(self, agent: Agent) -> Step:
        agent.params.add_(1.0)
        agent.state.setdefault("count", torch.zeros(())).add_(1)
        if agent.step % self.period == 0:
            models = yield {rank: agent.params for rank in agent.neighbors}
            agent.mix(models)


@pytest.mark.parametrize("period", [1, 2, 3, 100])
def test_a_step_runs_once(period: int) -> None:
    agents = Quadratics(2, heterogeneity=1.0).agents(cga.Complete(2))
    driver = StepDriver(CountsInPlace(period), agents, LocalCommunicator())
    start = torch.stack([agent.params for agent in agents]).mean(0)
    for _ in range(7):
        driver.begin()
        driver.finish([torch.ones(8, dtype=torch.float64)] * 2)
        driver.end()
    assert [int(agent.state["count"]) for agent in agents] == [7, 7]
    torch.testing.assert_close(torch.stack([agent.params for agent in agents]).mean(0), start + 7)


class NotAGenerator(cga.Algorithm):
    def step(self, agent: Agent) -> None:  # type: ignore[override]
        agent.grad = agent.grad * 0.5


def test_a_step_that_is_no_generator_is_refused() -> None:
    with pytest.raises(TypeError, match=r"NotAGenerator.step must be a generator, got NoneType. Yield \{neighbor"):
        trained(NotAGenerator(), 1)


# --- half precision


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_overflow_is_not_remembered_and_marks_the_direction_of_its_agent_only(name: str) -> None:
    problem = Quadratics(AGENTS, heterogeneity=1.0)
    agents = problem.agents(cga.Complete(AGENTS))
    driver = StepDriver(from_name(name), agents, LocalCommunicator())
    scalers = [GradScaler("cpu", init_scale=2.0**rank) for rank in range(AGENTS)]
    for overflow in (False, True, False):
        models = driver.begin()
        gradients = [agent.gradient(at=model) for agent, model in zip(agents, models, strict=True)]
        if overflow:
            gradients[1][2] = float("inf")
        own = [
            OwnGradient([g], lambda g=g, scaler=scaler: scaler.scale(g), scaler)
            for g, scaler in zip(gradients, scalers, strict=True)
        ]
        directions = driver.finish(own)
        assert [bool(direction.isfinite().all()) for direction in directions] == [True, not overflow, True, True]
        for agent, direction, scaler in zip(agents, directions, scalers, strict=True):
            if direction.isfinite().all():
                torch.testing.assert_close(direction, agent.grad * scaler.get_scale())
                agent.params = agent.params - 0.02 * agent.grad
        driver.end()
        assert all(agent.params.isfinite().all() for agent in agents)
