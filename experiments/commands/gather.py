"""The ``gather`` command: adds runs that were trained elsewhere to the folder of a study, and draws the study."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from experiments.commands.arguments import name_and_flags
from experiments.errors import UsageError
from experiments.report.gather import gather_runs
from experiments.study.catalogue import TRAINED, study_kind


def main(arguments: list[str]) -> int:
    """Add runs to a study and draw it; returns the exit code.

    Raises:
        UsageError: the study has no runs, the folder or archive does not exist, or none of its runs fits.
    """
    name, flags = name_and_flags(arguments, "gather NAME")
    if study_kind(name) != TRAINED:
        raise UsageError(f"gather {name}: this study trains no runs that could be added; name one that trains")
    for flag in flags:
        if (key := flag.partition("=")[0]) != "--from" and get_close_matches(key, ["--from"]):
            raise UsageError(f"gather {name}: {flag}: did you mean --from=PATH?")
    sources = [flag.removeprefix("--from=") for flag in flags if flag.startswith("--from=")]
    if len(sources) != 1 or not sources[0]:
        raise UsageError(f"gather {name}: --from=PATH is missing: a folder or an archive with runs")
    gather_runs(name, Path(sources[0]).expanduser(), [flag for flag in flags if not flag.startswith("--from=")])
    return 0
