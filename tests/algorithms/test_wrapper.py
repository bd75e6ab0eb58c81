"""What every algorithm around another one leaves to it, and what it does not go around."""

from __future__ import annotations

import re

import pytest

from cga_lightning import (
    CGA,
    DPSGD,
    SGP,
    Algorithm,
    Complete,
    Compressed,
    DirectedRing,
    LocalSteps,
    QuasiGlobalMomentum,
    WireDtype,
)
from cga_lightning.algorithms.wrapper import Wrapper

WRAPPERS = [
    QuasiGlobalMomentum,
    WireDtype,
    Compressed,
    lambda algorithm: LocalSteps(algorithm, 2),
    lambda algorithm: WireDtype(QuasiGlobalMomentum(algorithm)),
]


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("algorithm", [CGA(), DPSGD(), SGP()], ids=repr)
def test_where_it_runs_and_what_it_sends_is_up_to_the_algorithm(wrap: type[Wrapper], algorithm: Algorithm) -> None:
    wrapped = wrap(algorithm)
    for name in ("exchanges", "graphs", "most_neighbors", "averages_models_only", "takes_momentum"):
        assert getattr(wrapped, name) == getattr(algorithm, name)


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_it_refuses_what_the_algorithm_refuses(wrap: type[Wrapper]) -> None:
    wrap(DPSGD()).check(DirectedRing(5))
    with pytest.raises(ValueError, match="edges of DirectedRing.* have no way back"):
        wrap(CGA()).check(DirectedRing(5))
    with pytest.raises(ValueError, match="at most 64 neighbors"):
        wrap(CGA()).check(Complete(66))


@pytest.mark.parametrize("wrap", WRAPPERS[:3])
@pytest.mark.parametrize("given", ["cga", CGA, None], ids=repr)
def test_it_goes_around_algorithms_only(wrap: type[Wrapper], given: object) -> None:
    message = f"{wrap.__name__} goes around an algorithm, as in {wrap.__name__}(DPSGD()), got {given!r}."
    with pytest.raises(TypeError, match=re.escape(message)):
        wrap(given)
