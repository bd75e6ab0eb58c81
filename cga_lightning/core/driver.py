"""The driver of a step: what runs an algorithm for the agents of this process, under a Trainer or in a plain loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor
from torch.amp import GradScaler

from cga_lightning.core.agent import Agent, GradientNotComputed
from cga_lightning.core.algorithm import Algorithm, Step
from cga_lightning.core.communication import Communicator
from cga_lightning.core.finite import FiniteCheck
from cga_lightning.core.loss_scaling import Overflow, rescale, unscale


class OwnGradient(NamedTuple):
    """The gradient of an agent as the backward pass has left it.

    Attributes:
        parts: tensors that together hold all its elements, such as the gradients of the parameters.
        flat: brings them together `[d]`; called if the algorithm asks for the gradient.
        scaler: has scaled the loss; None for no scale.
    """

    parts: Sequence[Tensor]
    flat: Callable[[], Tensor]
    scaler: GradScaler | None = None

    @classmethod
    def of(cls, gradient: Tensor | OwnGradient) -> OwnGradient:
        """A plain gradient `[d]` has one part."""
        return gradient if isinstance(gradient, OwnGradient) else cls([gradient], lambda: gradient)


class StepDriver:
    """Takes the agents of this process through the steps of an algorithm.

    A loop of one's own, where x <- x - lr * direction is the optimizer:

        driver = StepDriver(CGA(), agents, LocalCommunicator())
        for _ in range(steps):
            models = driver.begin()
            driver.finish([agent.gradient(at=model) for agent, model in zip(agents, models, strict=True)])
            for agent in agents:
                agent.params -= lr * agent.grad
            driver.end()

    Args:
        algorithm: what every agent runs.
        agents: those of this process, in the order of their ranks, all at the same step; may be replaced between steps.
        communicator: carries their messages.
    """

    def __init__(self, algorithm: Algorithm, agents: Sequence[Agent], communicator: Communicator) -> None:
        self.algorithm = algorithm
        self.agents = list(agents)
        self.communicator = communicator
        self._begun = False
        self._sends_first = False  # whether the last step has sent something before it asked for the gradient
        self._finite: dict[int, FiniteCheck] = {}

    @property
    def step(self) -> int:
        """How many steps the agents have made."""
        return self.agents[0].step if self.agents else 0

    def begin(self) -> list[Tensor]:
        """A step begins: the first messages go off, if those of the last step did not depend on the gradient.

        Returns:
            The models `[d]` of the agents, at which their own gradients are due.
        """
        graph = self.agents[0].topology.at(self.step)
        for agent in self.agents:
            agent.await_gradient()
            agent.diagnostics = {}
            agent.enter(graph)
        models = [agent.params for agent in self.agents]
        self.communicator.open_step(self.step, self.algorithm.exchanges)
        self._begun = self._sends_first and self._begin_early()
        return models

    def _begin_early(self) -> bool:
        put_back = [agent.snapshot() for agent in self.agents]
        try:
            self.communicator.start(self._steps())
        except GradientNotComputed:  # this step is another kind; nothing has been sent: start again once it is there
            for restore in put_back:
                restore()
            return False
        self._sends_first = self.communicator.pending
        return True

    def _steps(self) -> list[Step]:
        return [self.algorithm.step(agent) for agent in self.agents]

    def finish(self, gradients: Sequence[Tensor | OwnGradient]) -> list[Tensor | None]:
        """The own gradients are there: run `Algorithm.step` to its end, so that `params` are ready for the optimizer.

        Args:
            gradients: one per agent, `[d]` or as backward has left it.

        Returns:
            The directions `[d]` of the optimizer steps, with the scale of the agent's loss if there is one; None where
            the own gradient stays as it is, since no algorithm has asked for it.
        """
        own = [OwnGradient.of(gradient) for gradient in gradients]
        overflows = [self._offer(agent, gradient) for agent, gradient in zip(self.agents, own, strict=True)]
        if not self._begun:
            self.communicator.start(self._steps())
            self._sends_first = self.communicator.pending and all(agent.direction is None for agent in self.agents)
        self.communicator.finish()
        for agent, overflow in zip(self.agents, overflows, strict=True):
            if overflow is not None:
                agent.grad = overflow.mark(agent.grad)
        directions = [agent.direction for agent in self.agents]
        return [None if d is None else rescale(d, g.scaler) for d, g in zip(directions, own, strict=True)]

    def _offer(self, agent: Agent, own: OwnGradient) -> Overflow | None:
        if own.scaler is None:
            self._finite_check(agent).look_at(own.parts, agent.step)
            agent.offer_gradient(own.flat)
            return None
        overflow = Overflow(unscale(own.flat(), own.scaler))
        agent.offer_gradient(lambda: overflow.gradient)
        return overflow

    def end(self) -> None:
        """The optimizer has stepped: run `Algorithm.after_step`, after which the step is over."""
        self.communicator.run([self.algorithm.after_step(agent) for agent in self.agents])
        for agent in self.agents:
            agent.step += 1

    def diagnostics(self, agent: Agent) -> dict[str, Tensor]:
        """What is known of the agent's last step: scalars by name."""
        norm, count = agent.grad.norm(), self._finite_check(agent).count
        return {"gradient_norm": norm, "non_finite_gradients": norm.new_tensor(count), **agent.diagnostics}

    def _finite_check(self, agent: Agent) -> FiniteCheck:
        if agent.rank not in self._finite:
            self._finite[agent.rank] = FiniteCheck(agent.rank)
        return self._finite[agent.rank]
