import pytest
from projection_backends import IMPLEMENTATIONS, Implementation


@pytest.fixture(params=IMPLEMENTATIONS, scope="session")
def run(request: pytest.FixtureRequest) -> Implementation:
    """Each implementation in turn: ``run(rows, own, margin=, offsets=, eps=)``."""
    return IMPLEMENTATIONS[request.param]
