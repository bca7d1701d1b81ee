"""The ``run`` command: a study from training to its report, or the one run that a wandb agent asks for."""

from __future__ import annotations

from experiments.commands.arguments import name_and_flags
from experiments.commands.kinds import kind_of


def main(arguments: list[str]) -> int:
    """Run a study; returns the exit code: 1 where a run failed.

    Raises:
        UsageError: no such study, or flags that cannot work.
    """
    name, flags = name_and_flags(arguments, "run NAME")
    kind = kind_of(name)  # a misspelt name is reported before torch is loaded
    if "--on=ray" in flags:
        from experiments.execution.cluster import find_cluster

        find_cluster()  # a missing cluster too
    from experiments.tracking import called_by_agent

    if called_by_agent():
        from experiments.sweep.command import run_for_agent

        return 1 if run_for_agent(name, flags) else 0
    return kind.run(name, flags)
