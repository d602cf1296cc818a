"""Make faults on purpose, and look at what they do: one sub-command for each kind.

    python scripts/faults.py kill 20
    python scripts/faults.py commands 500 --seed 3
    python scripts/faults.py folders 1 --first 17 --show

Sub-commands that play cases draw each from the seed and its number, judge it, and print what fails,
with the command line that plays it again, and a table. The exit code is 1 if anything fails. They
share the modules of `scripts/harness/`; `python scripts/faults.py COMMAND --help` describes each.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

COMMANDS = {
    "kill": "kill a process of a training on Ray, and look at what is left",
    "chaos": "train with --chaos, and compare with the same run without faults",
    "crash": "kill the driver in the middle of a write, resume, and compare the bits",
    "commands": "random command lines in odd environments; none may end in a fault",
    "folders": "hostile runs, datasets and sources, for every command that reads them",
    "live": "read a run in loops while it is trained, stopped and resumed",
    "leaks": "train many times in one process, and look at what is left",
    "recovery": "measure how soon training continues after a kill, or stops when asked to",
}


def main() -> int:
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    inner = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    chosen = next(iter(sys.argv[1:]), "")
    for name, summary in COMMANDS.items():
        module = import_module(f"harness.{name}") if name == chosen else None
        added = inner.add_parser(
            name, help=summary, description=module and module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        if module:
            module.arguments(added)
            added.set_defaults(main=module.main)
    given = parser.parse_args()
    return int(given.main(given))


if __name__ == "__main__":
    sys.exit(main())
