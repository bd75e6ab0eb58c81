"""The choice of a backend: by what is there, by the environment, and never another one silently."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cga_lightning.ops import _choice, _library

CSRC = Path(__file__).parents[2] / "csrc"
NAMES = sorted({name for backends in _choice.BACKENDS.values() for name in backends})
PROJECT = "import torch; from cga_lightning.ops import project; "
PROJECT += "print(project(torch.eye(2), -torch.ones(2), eps=0.0).gradient)"


def run(asked: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, _choice.VARIABLE: asked}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=120)


@given(st.lists(st.sampled_from(NAMES)), st.sampled_from(sorted(_choice.BACKENDS)))
def test_the_first_name_that_serves_a_device_is_chosen(names: list[str], device: str) -> None:
    found = _choice.chosen(device, {_choice.VARIABLE: " , ".join(names)})
    assert found == next((name for name in names if name in _choice.BACKENDS[device]), None)


@given(st.text(st.characters(exclude_characters=",", exclude_categories=["Z", "C"]), min_size=1))
def test_an_unknown_name_is_an_error_that_lists_the_known(name: str) -> None:
    if name in NAMES:
        return
    with pytest.raises(ValueError, match=rf"{_choice.VARIABLE} must name backends among {', '.join(NAMES)}, found"):
        _choice.chosen("cpu", {_choice.VARIABLE: f"torch,{name}"})


@pytest.mark.parametrize(("asked", "cpu", "cuda"), [("torch", "torch", "torch"), ("cpp,torch", "cpp", "torch")])
def test_info_shows_what_was_asked_for_and_what_serves(asked: str, cpu: str, cuda: str) -> None:
    shown = run(asked, "-m", "cga_lightning", "info").stdout
    assert f"{_choice.VARIABLE}={asked}\n" in shown
    assert f"cpu: {cpu} (" in shown and f"cuda: {cuda} (" in shown


def test_a_chosen_backend_computes() -> None:
    assert run("torch", "-c", PROJECT).stdout == "tensor([0., 0.])\n"


def test_a_backend_that_is_missing_is_an_error_at_its_first_use(tmp_path: Path) -> None:
    """The package without what was compiled; it still loads, so that `info` can tell."""
    package = Path(_library.__file__).parents[1]
    copied = tmp_path / package.name
    copied.mkdir()
    for path in package.iterdir():
        if path.suffix != ".so" and not path.name.endswith(".missing.txt"):
            (copied / path.name).symlink_to(path)
    (copied / "ops").unlink()
    (copied / "ops").mkdir()
    for path in (package / "ops").glob("*.py"):  # by its own place a module looks for the library
        (copied / "ops" / path.name).write_text(path.read_text())
    shown = run("cpp", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {PROJECT}")
    assert shown.stderr.splitlines()[-1] == (
        "RuntimeError: cga_lightning: CGA_LIGHTNING_BACKEND asks for the backend cpp, which is missing: it was not "
        "built; set CGA_LIGHTNING_BACKEND=torch to choose another (python -m cga_lightning info shows what is there)."
    )


def test_the_extension_advises_in_the_same_words() -> None:
    text = (CSRC / "cuda/launch.cu").read_text()
    parts = re.search(r"kAdvice =\s*((?:\"[^\"]*\"\s*)+);", text)
    assert parts and "".join(re.findall(r'"([^"]*)"', parts[1])) == f"; {_choice.advice('cuda', 'cuda')}."
