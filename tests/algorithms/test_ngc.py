"""NGC: which gradients are averaged, and what is sent for it."""

from __future__ import annotations

import pytest
import torch

from cga_lightning import NGC, Complete, Ring
from cga_lightning.core.communication import LocalCommunicator
from tests.quadratics import Quadratics, train


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_direction_is_the_mean_of_own_model_variant_and_data_variant_gradients(alpha: float) -> None:
    problem, communicator, algorithm = Quadratics(4, heterogeneity=1.0), LocalCommunicator(), NGC(alpha=alpha)
    agents = problem.agents(Ring(4))
    for agent in agents:
        agent.grad = agent.gradient(at=agent.params)
    communicator.open_step(0, algorithm.exchanges)
    communicator.run([algorithm.step(agent) for agent in agents])
    x = problem.start
    for j, agent in enumerate(agents):
        around = [j, (j - 1) % 4, (j + 1) % 4]
        model_variant = sum(problem.gradient(j, x[other]) for other in around) / 3
        data_variant = sum(problem.gradient(other, x[j]) for other in around) / 3
        torch.testing.assert_close(agent.grad, (1 - alpha) * model_variant + alpha * data_variant)
        torch.testing.assert_close(agent.params, x[around].mean(0))
    assert list(communicator.traffic) == ["models", "cross_gradients"][: 2 if alpha else 1]


def test_data_variant_gradients_lead_to_the_optimum_on_a_complete_graph() -> None:
    problem = Quadratics(5, heterogeneity=1.0)
    x = train(problem, NGC(), Complete(5), lr=lambda step: 0.2, steps=200)
    assert float((x - problem.optimum).norm(dim=1).max()) < 1e-6


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="NGC\\(alpha=...\\) must be in \\[0, 1\\], got 1.5"):
        NGC(alpha=1.5)
