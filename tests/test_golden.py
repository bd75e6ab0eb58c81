"""Four processes = four simulated agents = a straight-line computation, step by step over 12 steps."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, combinations
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

import cga_lightning as cga
from tests.toys import QUIET, Classifier, OwnData, SaveOwnWeights, largest_difference, mlp, one_class_each

AGENTS, EPOCHS, LR, MOMENTUM, BATCH = 4, 3, 0.1, 0.9, 4


@dataclass
class Case:
    algorithm: cga.Algorithm
    accumulate: int = 1
    clip: float | None = None
    samples: int = 16  # per agent: 4 micro-batches an epoch
    projects: bool = True  # some constraint must be active, or the case does not exercise the quadratic program

    @property
    def trainer(self) -> dict:
        return {
            **QUIET,
            "max_epochs": EPOCHS,
            "accumulate_grad_batches": self.accumulate,
            "gradient_clip_val": self.clip,
        }


CASES = {
    "paper": Case(cga.CGA(margin=0.0, weights="uniform")),
    "default": Case(cga.CGA(), projects=False),
    "per layer": Case(cga.CGA.reference()),
    "short last window, clipped": Case(cga.CGA(margin=0.0, weights="uniform"), accumulate=3, clip=0.2),
    "dpsgd": Case(cga.DPSGD(), projects=False),
}


@pytest.mark.parametrize("name", CASES)
def test_processes_and_simulation_equal_the_straight_line(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    expected, active = straight_line(case)
    simulated = simulate(case)
    processes = run_processes(case, tmp_path)
    assert largest_difference(simulated, expected) <= 1e-6
    assert largest_difference(processes, expected) <= 1e-6
    assert active > 0 or not case.projects
    assert largest_difference(expected[:1], expected[1:2]) > 1e-3  # else all agents are alike


def simulate(case: Case) -> list[dict[str, Tensor]]:
    strategy = cga.SimulatedStrategy(AGENTS, case.algorithm)
    trainer = pl.Trainer(strategy=strategy, devices=1, **case.trainer)
    trainer.fit(Classifier(LR), datamodule=OwnData(one_class_each(AGENTS, case.samples), BATCH))
    return strategy.agent_state_dicts()


def run_processes(case: Case, folder: Path) -> list[dict[str, Tensor]]:
    save = SaveOwnWeights(folder)
    strategy = cga.DecentralizedStrategy(case.algorithm, start_method="fork")
    trainer = pl.Trainer(strategy=strategy, devices=AGENTS, callbacks=[save], **case.trainer)
    trainer.fit(Classifier(LR), datamodule=OwnData(one_class_each(AGENTS, case.samples), BATCH))
    return save.load(AGENTS)


# The straight line: no code of the package below, but for the settings in the case.


def straight_line(case: Case) -> tuple[list[dict[str, Tensor]], int]:
    nets = [mlp() for _ in range(AGENTS)]
    momenta = [[torch.zeros_like(p) for p in net.parameters()] for net in nets]
    data = [dataset.tensors for dataset in one_class_each(AGENTS, case.samples)]
    ring = {agent: [(agent - 1) % AGENTS, (agent + 1) % AGENTS] for agent in range(AGENTS)}
    active = 0
    for epoch in range(EPOCHS):
        batches = [slice(i, i + BATCH) for i in range(0, case.samples, BATCH)]
        for start in range(0, len(batches), case.accumulate):
            window = batches[start : start + case.accumulate]
            models = [[p.detach().clone() for p in net.parameters()] for net in nets]
            gradient = {
                (j, i): gradient_at(models[j], data[i], window, case.accumulate)
                for j in range(AGENTS)
                for i in (j, *ring[j])
            }
            for j, net in enumerate(nets):
                own, cross = gradient[j, j], [gradient[j, i] for i in ring[j]]
                direction, found = direction_of(case.algorithm, own, cross)
                active += found
                if case.clip is not None:
                    norm = torch.cat([g.flatten() for g in direction]).norm()
                    direction = [g * min(1.0, case.clip / (float(norm) + 1e-6)) for g in direction]
                with torch.no_grad():
                    for n, p in enumerate(net.parameters()):
                        p.copy_((models[j][n] + models[ring[j][0]][n] + models[ring[j][1]][n]) / 3)
                        momenta[j][n].mul_(MOMENTUM).add_(direction[n])
                        p.sub_(momenta[j][n], alpha=LR * 0.5**epoch)
    return [{f"net.{name}": value for name, value in net.state_dict().items()} for net in nets], active


def gradient_at(model: list[Tensor], data: tuple[Tensor, ...], window: list[slice], accumulate: int) -> list[Tensor]:
    net = mlp()
    with torch.no_grad():
        for p, value in zip(net.parameters(), model, strict=True):
            p.copy_(value)
    for part in window:
        loss = torch.nn.functional.cross_entropy(net(data[0][part]), data[1][part])
        (loss / accumulate).backward()
    return [p.grad for p in net.parameters()]


def direction_of(algorithm: cga.Algorithm, own: list[Tensor], cross: list[list[Tensor]]) -> tuple[list[Tensor], int]:
    if isinstance(algorithm, cga.DPSGD):
        return own, 0
    scale = 1 / 3 if algorithm.weights == "mixing" else 1.0
    blocks = [[n] for n in range(len(own))] if algorithm.scope == "layer" else [list(range(len(own)))]
    direction, active = list(own), 0
    for block in blocks:
        g = torch.cat([own[n].double().flatten() for n in block]) * scale
        rows = torch.stack([torch.cat([c[n].double().flatten() for n in block]) for c in cross]) * scale
        solution, found = project_onto_cone(rows, g + algorithm.margin * rows.sum(0))
        active += found
        parts = solution.split([own[n].numel() for n in block])
        for n, part in zip(block, parts, strict=True):
            direction[n] = part.view_as(own[n]).float()
    return direction, active


def project_onto_cone(rows: Tensor, point: Tensor) -> tuple[Tensor, int]:
    """The closest u to `point` with rows @ u >= 0: of all active sets, the nearest feasible candidate."""
    indices = range(len(rows))
    best: tuple[float, Tensor, int] | None = None
    for active in chain.from_iterable(combinations(indices, k) for k in range(len(rows) + 1)):
        u = point
        if active:
            a = rows[list(active)]
            u = point - a.T @ torch.linalg.lstsq(a.T, point.unsqueeze(1)).solution.squeeze(1)
        distance = float((u - point).norm())
        if (rows @ u >= -1e-9 * rows.norm(dim=1) * point.norm()).all() and (best is None or distance < best[0]):
            best = (distance, u, len(active))
    assert best is not None
    return best[1], best[2]
