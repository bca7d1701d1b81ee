"""The ``results`` command: copies the tables and figures of a study to the record."""

from __future__ import annotations

from experiments.commands.arguments import study_folder
from experiments.commands.kinds import kind_of
from experiments.errors import UsageError
from experiments.report.replacement import check_replaces
from experiments.study.catalogue import CONFIGS, HOME, study_names


def main(arguments: list[str]) -> int:
    """Copy the results of a study to ``results/``, and print the paths of the files written; returns the exit code.

    Raises:
        UsageError: no such study, one outside of ``configs/``, no tables yet, or a record with more evidence.
    """
    folder = study_folder([a for a in arguments if a != "--replace"], "results", ["--replace"])
    if folder.name not in study_names():
        raise UsageError(f"results {arguments[0]}: the record has the studies of {CONFIGS}: copy the file there first")
    if "--replace" not in arguments:
        check_replaces(folder / "tables", HOME / "results" / folder.name)
    print(*kind_of(folder.name).write_record(folder, HOME), sep="\n")
    return 0
