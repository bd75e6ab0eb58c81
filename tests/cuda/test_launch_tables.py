"""What the extension launches by address are kernels: a function of the same name would fail at the first launch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cga_lightning.ops import _library

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.skipif(
        _library.backend("cuda") != "cuda", reason=f"no extension for CUDA: {_library.missing().get('cuda')}"
    ),
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler"),
]


def test_every_entry_is_a_registered_kernel(tmp_path: Path) -> None:
    spy = tmp_path / "registered.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", spy, HERE / "registered.c", "-ldl"], check=True)
    done = subprocess.run(
        [sys.executable, HERE / "launch_tables.py"],
        env={**os.environ, "LD_PRELOAD": str(spy)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    entries = [line.split() for line in done.stdout.splitlines() if line.startswith("kernels_")]
    assert len(entries) >= 34
    wrong = [f"{table}: {name}" for table, name, found in entries if found != "registered"]
    assert not wrong, f"no kernel, but another function of that name, stands in csrc/cuda/ for {', '.join(wrong)}"
