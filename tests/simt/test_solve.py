"""The quadratic programs alone: many random Gram matrices, judged by the conditions of optimality."""

import numpy as np
import pytest
from executor import Arrays, Executor
from programs import assert_solves_programs


def test_indefinite_matrices_do_no_harm(executor: Executor) -> None:
    """Matrices that are no Gram matrices, as if rounding had made them indefinite: the cap ends the worst."""
    random = np.random.default_rng(0)
    own = np.zeros(200, np.float32)
    arrays = Arrays([own] * 12, own, range(201))
    symmetric = random.standard_normal((200, 13, 13))
    arrays.gram[:] = symmetric + symmetric.transpose(0, 2, 1)
    arrays.gram[:, range(13), range(13)] = 1
    arrays.run(executor, arrays.plan("f32", ridge=0.0).solve())
    assert set(arrays.status) <= {0, 1}
    assert (arrays.dual >= 0).all()
    assert np.isfinite(arrays.dual).all()


@pytest.mark.parametrize(("cross", "problems"), [(1, 60), (2, 300), (5, 400), (16, 500), (33, 250), (64, 90)])
@pytest.mark.parametrize(("margin", "ridge"), [(0.0, 1e-6), (0.5, 0.0)])
def test_random_problems(executor: Executor, cross: int, problems: int, margin: float, ridge: float) -> None:
    assert_solves_programs(executor, cross, problems, margin, ridge)
