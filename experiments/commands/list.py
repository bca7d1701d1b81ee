"""The ``list`` command: the studies, and how many of their runs are done."""

from __future__ import annotations

import json
from pathlib import Path

from experiments.errors import UsageError
from experiments.study.catalogue import studies


def main(arguments: list[str]) -> int:
    """Print the studies; returns the exit code.

    Raises:
        UsageError: an unknown flag, or a study whose file cannot be read.
    """
    for flag in arguments:
        if flag != "--json":
            raise UsageError(f"list: unknown flag {flag}; there is: --json")
    done = {}
    if Path("runs").is_dir():  # else there is no need to load torch
        from experiments.commands.status import runs_done

        done = runs_done(Path("runs"))
    listed = studies(done)
    if arguments:
        print(json.dumps(listed, indent=1))
        return 0
    for study in listed:
        count = f"{study['runs_done']} of {study['runs']} runs done"
        print(f"{study['name']:<20}{study['question']}\n{'':<20}{study['time']}\n{'':<20}{count}\n")
    return 0
