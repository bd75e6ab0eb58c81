"""The problems, their checks and the executor are those of tests/simt."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "simt"))
