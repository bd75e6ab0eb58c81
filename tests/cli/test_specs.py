"""Objects from names and class paths."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cga_lightning import CGA, DPSGD, QuasiGlobalMomentum, Ring, TopK, Torus, partition
from cga_lightning.algorithms import ALGORITHMS
from cga_lightning.cli.comparison.specs import label
from cga_lightning.cli.comparison.trial import algorithm_of, partition_of, topology_of


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_name_is_the_algorithm_with_its_defaults(name: str) -> None:
    assert repr(algorithm_of(name)) == repr(ALGORITHMS[name]()) and label(name) == name


@given(
    margin=st.floats(0, 10),
    scope=st.sampled_from(["model", "layer"]),
    beta=st.floats(0, 0.99),
    path=st.sampled_from(["CGA", "cga_lightning.CGA", "cga_lightning.algorithms.cga.CGA"]),
)
def test_a_class_path_is_the_object_with_those_arguments(margin: float, scope: str, beta: float, path: str) -> None:
    inner = {"class_path": path, "init_args": {"margin": margin, "scope": scope}}
    spec = {"class_path": "QuasiGlobalMomentum", "init_args": {"algorithm": inner, "beta": beta}}
    expected = QuasiGlobalMomentum(CGA(margin=margin, scope=scope), beta=beta)  # type: ignore[arg-type]
    assert repr(algorithm_of(spec)) == repr(expected)
    assert label(spec) == f"QuasiGlobalMomentum(algorithm=CGA(margin={margin!r}, scope={scope!r}), beta={beta!r})"


def test_class_methods_dataclasses_and_compressors() -> None:
    spec = {"class_path": "CGA.reference"}
    assert repr(algorithm_of(spec)) == repr(CGA.reference()) and label(spec) == "CGA.reference()"
    spec = {"class_path": "CGA", "init_args": {"compressor": {"class_path": "TopK", "init_args": {"ratio": 0.25}}}}
    assert repr(algorithm_of(spec)) == repr(CGA(compressor=TopK(ratio=0.25)))
    assert topology_of("ring") == Ring() and topology_of({"class_path": "Torus"}) == Torus()


def test_a_partition_is_a_function_with_arguments() -> None:
    spec = {"class_path": "dirichlet", "init_args": {"alpha": 0.3}}
    found, labels = partition_of(spec), [i % 4 for i in range(40)]
    expected = partial(partition.dirichlet, alpha=0.3)(labels, 5, seed=2)
    assert all((a == b).all() for a, b in zip(found(labels, 5, seed=2), expected, strict=True))
    assert partition_of("iid") is partition.iid


@pytest.mark.parametrize(
    "spec, message",
    [
        ("cgaa", "Unknown algorithm 'cgaa'; known: cga, compcga"),
        ("CGA(margin=__import__('os').getpid())", "Unknown algorithm"),
        ({"class_path": "os.system", "init_args": {"command": "false"}}, "must be a Algorithm"),
        ({"class_path": "CGB"}, "there is no 'CGB', neither in cga_lightning nor from the top"),
        ({"class_path": "Ring"}, "but 'Ring' is <class"),
        ({"class": "CGA"}, "have class_path and init_args, got the keys class"),
        ({"class_path": "CGA", "init_args": {"margin": -1}}, "must be a finite number"),
    ],
)
def test_errors_say_what_was_found(spec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        algorithm_of(spec)


def test_dpsgd_has_no_margin() -> None:
    with pytest.raises(TypeError, match="takes no arguments"):
        algorithm_of({"class_path": "DPSGD", "init_args": {"margin": 1}})
    assert isinstance(algorithm_of({"class_path": "DPSGD"}), DPSGD)
