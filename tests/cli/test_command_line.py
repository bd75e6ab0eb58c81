"""`cga-lightning` and its commands, as a newcomer meets them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cga_lightning.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown and purpose in shown for name, purpose in COMMANDS.items())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"usage: cga-lightning {command}" in capsys.readouterr().out


def test_an_unknown_command_is_refused_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["comparee"])
    assert "compare" in capsys.readouterr().err


def test_info_tells_versions_and_backends(capsys: pytest.CaptureFixture[str]) -> None:
    main(["info"])
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("torch ") for line in lines) and any(line.startswith("cpu: ") for line in lines)


WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("jsonargparse", "plotly"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from cga_lightning.cli import main
main(["info"])
for command in (["compare"], ["report", "run"]):
    try:
        main(command)
    except SystemExit as stop:
        print(stop)
"""


def test_what_is_missing_is_said_with_the_extra_that_brings_it(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").write_text("step,loss\n1,2.0\n2,1.0\n")
    command = [sys.executable, "-c", WITHOUT]
    result = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "torch " in result.stdout
    assert "cga-lightning compare needs jsonargparse" in result.stdout
    assert "cga-lightning report needs plotly" in result.stdout
    assert result.stdout.count("pip install 'cga-lightning[tools]'") == 2
