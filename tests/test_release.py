"""What is said of the package outside of it agrees with what it says itself."""

import re
from pathlib import Path

import yaml

import cga_lightning
from tests.lowest import PYPROJECT, lowest

ROOT = Path(__file__).parent.parent


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == cga_lightning.__version__
    assert citation["license"] in PYPROJECT.read_text()


def test_the_oldest_python_is_tested_and_built_for() -> None:
    oldest = re.search(r'requires-python = ">=([\d.]+)"', PYPROJECT.read_text())[1]
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"]
    assert jobs["test"]["strategy"]["matrix"]["python"][0] == oldest
    assert f"cp{oldest.replace('.', '')}-" in PYPROJECT.read_text()


def test_make_knows_what_workflows_call() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    called = {
        name
        for workflow in (ROOT / ".github" / "workflows").glob("*.yml")
        for name in re.findall(r"run: make (\w+)", workflow.read_text())
    }
    assert called and called <= targets


def test_lowest_versions() -> None:
    text = 'dependencies = ["torch>=2.10"]\n  "jsonargparse[signatures]>=4.28",\n  "scikit-learn",\n  "ruff==0.17.6",'
    assert lowest(text) == ["torch==2.10", "jsonargparse==4.28"]
