"""One step of CGA and DPSGD by hand, without Lightning."""

from __future__ import annotations

import pytest
import torch

from cga_lightning import CGA, DPSGD, Algorithm, Complete
from cga_lightning.algorithms import Exchange, from_name
from cga_lightning.core import Agent, FlatLayout

OWN = torch.tensor([1.0, 0.0, 0.0])
CROSS = {1: torch.tensor([-1.0, 1.0, 0.0]), 2: torch.tensor([0.0, 1.0, 1.0])}
MODELS = {1: torch.tensor([3.0, 0.0, 0.0]), 2: torch.tensor([0.0, 3.0, 0.0])}


def step(algorithm: Algorithm, layout: FlatLayout | None = None) -> Agent:
    """Drive agent 0 of three through one step with given messages."""
    agent = Agent(0, Complete(3), torch.zeros(3), lambda at: -at, layout)
    running = algorithm.step(agent)
    outbox = Exchange.of(next(running)).outbox
    assert {rank: message.tolist() for rank, message in outbox.items()} == {1: [0, 0, 0], 2: [0, 0, 0]}
    agent.grad = OWN.clone()
    inbox = MODELS
    while True:
        try:
            outbox = running.send(inbox)
        except StopIteration:
            return agent
        assert all(torch.equal(outbox[rank], -MODELS[rank]) for rank in MODELS), "gradients of their models"
        inbox = {rank: message.clone() for rank, message in CROSS.items()}


def test_the_direction_has_no_negative_product_with_any_cross_gradient() -> None:
    agent = step(CGA(margin=0.0, weights="uniform"))
    torch.testing.assert_close(agent.grad, torch.tensor([0.5, 0.5, 0.0]))  # (1, 0, 0) onto the plane u_1 = u_2
    torch.testing.assert_close(agent.params, torch.tensor([1.0, 1.0, 0.0]))
    assert agent.diagnostics["conflicts"] == 0.5


def test_the_default_projects_the_weighted_mean() -> None:
    agent = step(CGA())
    torch.testing.assert_close(agent.grad, (OWN + CROSS[1] + CROSS[2]) / 3)
    assert agent.diagnostics["conflicts"] == 0


@pytest.mark.parametrize("margin", [0.0, 0.5, 2.0])
def test_equal_mixing_weights_only_shorten_the_step(margin: float) -> None:
    mixing, uniform = (step(CGA(margin=margin, weights=weights)).grad for weights in ("mixing", "uniform"))
    torch.testing.assert_close(3 * mixing, uniform)


def test_a_program_per_layer_sees_one_layer_at_a_time() -> None:
    layout = FlatLayout([torch.zeros(1), torch.zeros(2)], alignment=1)
    agent = step(CGA(margin=0.0, weights="uniform", scope="layer"), layout)
    torch.testing.assert_close(agent.grad, torch.tensor([0.0, 0.0, 0.0]))


def test_dpsgd_mixes_and_keeps_its_gradient() -> None:
    agent = step(DPSGD())
    assert torch.equal(agent.grad, OWN)
    torch.testing.assert_close(agent.params, torch.tensor([1.0, 1.0, 0.0]))


def test_the_reference_is_the_rule_of_the_published_code() -> None:
    settings = {"margin": 0.5, "weights": "mixing", "scope": "layer"}
    assert CGA.reference().settings() == settings | {"eps": None, "compressor": None, "correction": None}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"margin": -1.0}, "margin=...\\) must be a finite number of at least 0, got -1.0"),
        ({"margin": float("nan")}, "got nan"),
        ({"eps": -1e-3}, "eps=...\\) must be"),
        ({"weights": "equal"}, "one of 'uniform', 'mixing', got 'equal'"),
        ({"scope": "tensor"}, "one of 'model', 'layer', got 'tensor'"),
    ],
)
def test_bad_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CGA(**options)


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="Unknown algorithm 'cgd'; known: cga, compcga, .*, or pass an algorithm"):
        from_name("cgd")


def test_it_takes_as_many_neighbors_as_the_projection_takes_rows() -> None:
    CGA().check(Complete(65))
    with pytest.raises(ValueError, match=r"at most 64 neighbors, but agent 0 of Complete\(66\) has 65"):
        CGA().check(Complete(66))
    DPSGD().check(Complete(66))
