"""The same package serves users of `pytorch_lightning` and of `lightning.pytorch`, whatever is imported first."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("tree_script.py")
TREES = ("pytorch_lightning", "lightning.pytorch")


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize(
    ("order", "strategies"),
    [
        ("{tree},cga_lightning", "cga_fork"),
        ("cga_lightning,{tree}", "spawn"),
        ("cga_lightning,class,{tree}", "fork"),
    ],
)
def test_one_tree(tree, order, strategies):
    assert trained(order.format(tree=tree), strategies) == f"trained {tree}"


@pytest.mark.parametrize("first", TREES)
def test_both_trees(first):
    """Names work in both; a class belongs to one."""
    (second,) = set(TREES) - {first}
    assert trained(f"cga_lightning,{second},{first}", "cga_fork,fork") == f"trained {first}"


def test_the_class_of_the_other_tree_says_so():
    code = """
import pytorch_lightning, lightning.pytorch, cga_lightning
from cga_lightning import _for_lightning
pytorch_lightning.Trainer(strategy=_for_lightning.SimulatedStrategy(agents=2))
"""
    assert "<SimulatedStrategy for users of lightning.pytorch>" in python("-c", code).stderr


def test_looking_for_a_tree_without_importing_it_changes_nothing():
    code = """
import importlib.util, sys, cga_lightning
for _ in range(2):
    assert importlib.util.find_spec("pytorch_lightning") is not None
assert "pytorch_lightning" not in sys.modules
import pytorch_lightning
assert "cga" in pytorch_lightning.strategies.StrategyRegistry
assert type(pytorch_lightning.__spec__.loader).__name__ == "SourceFileLoader"
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def trained(order, strategies):
    done = python(str(SCRIPT), order, strategies)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=200)
