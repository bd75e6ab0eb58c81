"""Prints the oldest versions that pyproject.toml allows, as constraints for pip."""

import re
from pathlib import Path

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
_OF_BUILDING = {"setuptools"}
_OF_A_DEVICE = {"cupy-cuda13x"}


def lowest(text: str) -> list[str]:
    """Every "name>=version" as "name==version"; what has no version is left to pip."""
    found = dict(re.findall(r'"([\w.-]+)(?:\[\w+\])?>=([\w.]+)"', text))
    return [f"{name}=={version}" for name, version in found.items() if name not in _OF_BUILDING | _OF_A_DEVICE]


if __name__ == "__main__":
    print("\n".join(lowest(PYPROJECT.read_text())))
