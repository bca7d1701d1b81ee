"""The ``sweep`` command: a search over the parameters of a sweep file."""

from __future__ import annotations

from experiments.errors import UsageError
from experiments.sweep.file import sweep_path


def main(arguments: list[str]) -> int:
    """Run a sweep; returns the exit code: 1 where a run failed.

    Raises:
        UsageError: no such sweep, or flags that cannot work.
    """
    if not arguments or arguments[0].startswith("-"):
        raise UsageError("sweep NAME: the name is missing; the sweeps are in configs/sweeps")
    sweep_path(arguments[0])  # a misspelt name is reported before torch is loaded
    if "--on=ray" in arguments:
        from experiments.execution.cluster import find_cluster

        find_cluster()  # a missing cluster too
    from experiments.sweep.command import run_sweep

    return 1 if run_sweep(arguments[0], arguments[1:]) else 0
