"""All that a first GPU has to show, in one command of at most six minutes: `make gpu`.

Needs torch, and what is there of nvcc, CuPy, pytest with scipy and compute-sanitizer; no network. It builds in a copy,
for this GPU alone, and runs every part under a limit of its own. It ends with a table for docs/kernel.md. `--dry` runs
the same parts on the CPU, on small problems.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).parents[2]
LIMIT = 350  # seconds for all
NOT_COPIED = (".git", ".venv", "build", "*.so", "__pycache__", ".*_cache", "shared")


class Part(NamedTuple):
    """One of the commands.

    Attributes:
        name: for the reader.
        most: seconds that it may take.
        command: what is run.
        shows: what it prints only if it has done something.
    """

    name: str
    most: int
    command: list[str]
    shows: str = ""


def parts(dry: bool, build: bool) -> list[Part]:
    """What is run, in this order."""
    python, here = sys.executable, "tests/gpu"
    found = [] if dry or not build else [Part("build", 150, [python, "setup.py", "build_ext", "--inplace"])]
    found.append(Part("versions", 60, [python, "-m", "cga_lightning", "info"]))
    tests = [python, "-m", "pytest", f"{here}/test_gpu.py", "-q", "-rs", "--maxfail=8", "-p", "no:cacheprovider"]
    if not dry and _has("pytest", "scipy"):
        found.append(Part("tests", 90, tests, " passed"))  # pytest succeeds where all are skipped
    limits = {"exactness": 60, "tensor_cores": 30, "speed": 60, "zeros": 30, "waits": 30, "training": 60, "agents": 40}
    measure = [python, f"{here}/measure.py"]
    if dry:  # in one process: to import torch takes longest
        found.append(Part("measure", LIMIT, [*measure, *limits, "every_kernel", "--dry"]))
    else:
        found += [Part(name, most, [*measure, name]) for name, most in limits.items()]
    sanitizer = _sanitizer()
    if not dry and sanitizer:
        for tool in ("memcheck", "racecheck", "synccheck"):
            command = [sanitizer, "--tool", tool, "--error-exitcode", "9", python, f"{here}/measure.py", "every_kernel"]
            found.append(Part(tool, 40, command))
    return found


def left_out() -> list[str]:
    """Rows of the table for what is not run on a device, since something is missing."""
    found = [] if _has("pytest", "scipy") else ["| tests | not run: needs pytest and scipy |"]
    return found if _sanitizer() else [*found, "| compute-sanitizer | not run: not found |"]


def _has(*packages: str) -> bool:
    from importlib.util import find_spec

    return all(find_spec(package) for package in packages)


def _sanitizer() -> str | None:
    known = shutil.which("compute-sanitizer"), "/usr/local/cuda/bin/compute-sanitizer"
    return next((path for path in known if path and Path(path).exists()), None)


def copied(folder: Path) -> Path:
    """A copy of the sources, to build in."""
    return Path(shutil.copytree(ROOT, folder / "tree", ignore=shutil.ignore_patterns(*NOT_COPIED)))


def run(part: Part, tree: Path, logs: Path, seconds: float) -> tuple[bool, str]:
    """Run a part; returns whether it passed, and its output."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    environment.setdefault("OMP_NUM_THREADS", "1")
    if "--tool" in part.command:  # every tensor an allocation of its own, whose ends are watched
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    if torch.cuda.is_available():
        environment["TORCH_CUDA_ARCH_LIST"] = "{}.{}".format(*torch.cuda.get_device_capability())
    log = logs / f"{part.name}.log"
    with log.open("w") as file:
        process = subprocess.Popen(part.command, cwd=tree, env=environment, stdout=file, stderr=subprocess.STDOUT)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = -1
            file.write(f"\nended after {seconds:.0f} s\n")
    output = log.read_text()
    return code == 0 and part.shows in output, output


def main() -> int:
    """Run the parts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry", action="store_true", help="on the CPU, on small problems")
    parser.add_argument("--no-build", action="store_true", help="take the extension that is there")
    parser.add_argument("--logs", type=Path, default=Path(os.environ.get("OUT", tempfile.gettempdir())) / "gpu")
    options = parser.parse_args()
    if not options.dry and not torch.cuda.is_available():
        print("There is no CUDA device here: --dry shows what would run.")
        return 1
    options.logs.mkdir(parents=True, exist_ok=True)
    begin, failed, table = time.monotonic(), [], []
    with tempfile.TemporaryDirectory() as folder:
        in_place = options.dry or options.no_build
        tree = ROOT if in_place else copied(Path(folder))
        for part in parts(options.dry, not in_place):
            started, left = time.monotonic(), LIMIT - (time.monotonic() - begin)
            passed, output = run(part, tree, options.logs, max(5, min(part.most, left)))
            verdict = "passed" if passed else "FAILED"
            print(f"{part.name}: {verdict} in {time.monotonic() - started:.0f} s", flush=True)
            lines = output.splitlines()
            table += [line for line in lines if line.startswith("| ")]
            if not passed:
                failed.append(part.name)
                print("\n".join(f"    {line}" for line in lines[-15:]))
            else:
                told = lines if part.name == "versions" else [line for line in lines if line.startswith("SKIPPED")]
                print("".join(f"    {line}\n" for line in told), end="")
    table += [] if options.dry else left_out()
    device = "CPU, small problems" if options.dry else torch.cuda.get_device_name()
    print(f"\n| {device} | result |\n|---|---|", *table, sep="\n")
    print(f"\n{len(failed)} parts failed{': ' if failed else ''}{', '.join(failed)}; logs in {options.logs}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
