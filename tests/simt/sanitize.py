"""Runs the executor's tests with an instrumented build: ``sanitize.py address|thread|coverage``.

address: memory and undefined behaviour; every array and the shared memory have their exact size.
thread: every CUDA thread is a thread to the sanitizer, so that a missing barrier or fence is a data race.
coverage: lines of the kernels that the tests reach.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "csrc" / "kernels"
FLAGS = {
    "address": "-O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined",
    "thread": "-O1 -fsanitize=thread",
    "coverage": "-O0 --coverage",
}
# Every kernel and every branch, at sizes that an instrumented build runs in seconds.
SELECTED = (
    "hard or solve or within_a_slot or two_passes or table or unaligned or small_ridge or margin or "
    "(every_number and (1- or 8- or 9- or 33- or 64-)) or (tensor_cores and 9-) or many_slots"
)
# Every kernel once: making a thread that TSan knows takes a millisecond, and there are 256 in a block.
FEW = (
    "two_passes or unaligned_rows or (many_slots and 4) or (tensor_cores and 9-) or (hard_case and Hilbert) or "
    "(out_of_range and 25-) or (random_problems and 1-60) or (every_number and (1- or 9-))"
)


def runtime(library: str) -> str:
    found = subprocess.run(["g++", f"-print-file-name={library}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def run(kind: str, extra: list[str]) -> int:
    environment = {
        **os.environ,
        "CGA_SIMT_FLAGS": FLAGS[kind],
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", str(HERE), "-q", "-p", "no:cacheprovider"]
    command += extra or ["-k", FEW if kind == "thread" else SELECTED]
    if kind == "address":
        # With the C++ library beside it, or no other library could throw.
        preloaded = f"{runtime('libasan.so')} {runtime('libstdc++.so')}"
        environment |= {"LD_PRELOAD": preloaded, "ASAN_OPTIONS": "detect_leaks=0"}
    if kind == "thread":
        environment |= {"LD_PRELOAD": runtime("libtsan.so"), "TSAN_OPTIONS": "halt_on_error=1 report_bugs=1"}
        command = ["setarch", "-R", *command]  # its shadow memory wants a fixed address layout
    return subprocess.run(command, env=environment, check=False).returncode


def coverage() -> float:
    """Return the share of executable lines of the kernels that ran, and print those that did not."""
    from executor import BUILD

    notes = max(BUILD.glob("*/*.gcda"), key=lambda path: path.stat().st_mtime)
    subprocess.run(["gcov", "-r", "-s", str(KERNELS), str(notes)], cwd=notes.parent, check=True, capture_output=True)
    ran = total = 0
    for report in sorted(notes.parent.glob("*.cuh.gcov")):
        # The lines of a template count as reached if an instance reached them.
        reached: dict[int, bool] = {}
        for line in report.read_text().splitlines():
            if match := re.match(r" *(-|#####|=====|\d+\*?): *(\d+):(.*)", line):
                count, number, _ = match.groups()
                if count != "-":
                    reached[int(number)] = reached.get(int(number), False) or count[0].isdigit()
        ran += sum(reached.values())
        total += len(reached)
        for number in sorted(number for number, found in reached.items() if not found):
            print(f"not reached: {report.name.removesuffix('.gcov')}:{number}")
    print(f"{ran} of {total} lines of the kernels, {100 * ran / total:.1f} %")
    return ran / total


if __name__ == "__main__":
    failed = run(sys.argv[1], sys.argv[2:])
    if sys.argv[1] == "coverage" and coverage() < 0.95:
        failed = 1
    sys.exit(failed)
