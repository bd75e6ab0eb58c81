"""Every Python block of the README and of the pages runs, in its order; the pages tell of all public names."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import yaml

import cga_lightning

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCKS = [
    pytest.param(page, block, id=f"{page.stem}: {block.strip().splitlines()[-1][:40]}")
    for page in (ROOT / "README.md", *PAGES)
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
]


@pytest.mark.parametrize("page, block", BLOCKS)
def test_block_runs(page: Path, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a Trainer with its defaults writes logs and checkpoints
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice about a run with its default logger
        exec(compile(block, str(page), "exec"), {"__name__": "readme"})


def test_there_are_blocks() -> None:
    assert len(BLOCKS) >= 7


def test_every_page_is_found() -> None:
    found = [page for entry in yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"] for page in entry.values()]
    assert sorted(found) == [page.name for page in PAGES]


def test_the_api_has_every_public_name() -> None:
    told = re.findall(r"^::: cga_lightning\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), flags=re.MULTILINE)
    assert sorted([*told, "ops"]) == sorted(cga_lightning.__all__)  # ops is told of function by function
