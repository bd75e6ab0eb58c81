"""What several processes in one test need: small thread pools, and an autograd engine that can be forked."""

import os
from collections.abc import Iterator

import pytest
import torch

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for processes that tests start
torch.set_num_threads(1)

# The engine counts devices at the first backward pass. Fake tensors, which other tests use, add a device where there is
# no GPU, and an engine with a thread for it refuses to run in forked processes.
torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(autouse=True)
def _forget_the_global_seed() -> Iterator[None]:
    """`seed_everything` leaves a variable that reseeds the processes, but not the simulation, of later tests."""
    yield
    os.environ.pop("PL_GLOBAL_SEED", None)
