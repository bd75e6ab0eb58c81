"""Twelve small runs of `cga-lightning compare`, one after the other and two at a time.

    python benchmarks/comparison.py

Prints the wall times and their ratio, which is 0.5 at best; and the processor time, which tells how far other work on
the machine has disturbed them: two processes get two cores only if nobody else is there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

GRID = ("--algorithms", "cga", "dpsgd", "--lrs", "0.01", "0.03", "--seeds", "0", "1", "2")
SIZE = ("--agents", "4", "--steps", "100", "--evaluations", "2", "--last", "1", "--batch_size", "16")


def seconds(jobs: int) -> tuple[float, float]:
    """Wall and processor time of a comparison in a process of its own, its start included."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "cga_lightning", "compare", *GRID, *SIZE, "--jobs", str(jobs)]
        start, used = time.perf_counter(), os.times()
        subprocess.run([*command, "--output", folder], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        now = os.times()
    cpu = now.children_user + now.children_system - used.children_user - used.children_system
    return time.perf_counter() - start, cpu


if __name__ == "__main__":
    in_turn, two = seconds(1), seconds(2)
    for name, (wall, cpu) in (("one after the other", in_turn), ("two at a time", two)):
        print(f"{name:20} {wall:6.1f} s, {cpu:6.1f} s of processor time")
    print(f"ratio of wall times  {two[0] / in_turn[0]:.2f}, load of the machine {os.getloadavg()[0]:.1f}")
