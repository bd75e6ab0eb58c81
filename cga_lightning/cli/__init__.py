"""The command line `cga-lightning`, the same as `python -m cga_lightning`: one file per command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "info": "what is installed and compiled here, and why something is missing",
    "check": "try a module and its data for two steps, before a long run: what works, what is refused, what it costs",
    "compare": "train by several algorithms, graphs, partitions, rates and seeds, and put the accuracies in tables",
    "report": "one web page from the logs of runs: curves, the graph, the agents' labels, the settings",
}
"""Name -> what it does. Each is a module of this package with a function `main(arguments)`."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that is named first; it reads the other arguments itself.

    Args:
        arguments: those of the command line; the process's own if None.
    """
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="cga-lightning",
        description="Decentralized learning with cga_lightning. Commands:\n\n"
        + "\n".join(f"  {name:{width}}  {purpose}" for name, purpose in COMMANDS.items()),
        epilog="What a command takes: cga-lightning COMMAND --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help=", ".join(COMMANDS))
    parser.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER, help="arguments of the command")
    given = parser.parse_args(arguments)
    import_module(f"{__name__}.{given.command}").main(given.arguments)
