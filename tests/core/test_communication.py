"""Exchanges between agents of one process: who hears of whom, and what happens if they disagree."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cga_lightning.algorithms import Exchange, Messages, Step
from cga_lightning.core.communication import CommunicationError, LocalCommunicator

RANKS = range(3)


def run(*yields: Messages | Exchange) -> tuple[list[Messages], LocalCommunicator]:
    """Agent i yields the i-th argument; returns what each of them gets."""
    inboxes: list[Messages] = [{} for _ in yields]

    def step(rank: int) -> Step:
        inboxes[rank] = yield yields[rank]

    communicator = LocalCommunicator()
    communicator.open_step(7, ["greetings"])
    communicator.run([step(rank) for rank in range(len(yields))])
    return inboxes, communicator


def message(rank: int) -> Tensor:
    return torch.full((2,), float(rank))


def test_a_plain_outbox_brings_a_message_from_everyone_in_it() -> None:
    inboxes, communicator = run({1: message(0)}, {0: message(1)}, {})
    assert [{rank: int(m[0]) for rank, m in inbox.items()} for inbox in inboxes] == [{1: 1}, {0: 0}, {}]
    assert communicator.traffic == {"greetings": 16}


def test_an_exchange_names_other_senders() -> None:
    ring = [Exchange({(rank + 1) % 3: message(rank)}, [(rank - 1) % 3], message(rank)) for rank in RANKS]
    inboxes, _ = run(*ring)
    assert [{rank: int(m[0]) for rank, m in inbox.items()} for inbox in inboxes] == [{2: 2}, {0: 0}, {1: 1}]


def test_an_agent_may_only_listen() -> None:
    inboxes, communicator = run(Exchange({1: message(0)}, [], None), Exchange({}, [0], message(0)))
    assert inboxes[0] == {} and torch.equal(inboxes[1][0], message(0))
    assert communicator.traffic == {"greetings": 8}


@pytest.mark.parametrize(
    "yields, error",
    [
        ([{1: message(0)}, {}], "Agent 0 sends 'greetings' to agent 1 at step 7, but agent 1 awaits nothing from it."),
        (
            [Exchange({}, [1], message(0)), {}],
            "Agent 1 does not send 'greetings' to agent 0 at step 7, but agent 0 awaits a message from it.",
        ),
    ],
)
def test_agents_that_disagree_are_named(yields: list[Messages | Exchange], error: str) -> None:
    with pytest.raises(CommunicationError, match=error):
        run(*yields)
