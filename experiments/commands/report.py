"""The ``report`` command: one self-contained HTML page of a study, or of the whole record with the ledger."""

from __future__ import annotations

import sys
from pathlib import Path

from experiments.commands.arguments import OF_RECORD, runs_root
from experiments.errors import UsageError
from experiments.report.html_page import PAGE, write_recorded_page, write_study_page, write_whole_page
from experiments.report.records import RESULTS
from experiments.report.summary import tables_folder
from experiments.report.tables import long_table
from experiments.study.catalogue import locate_study, study_kind
from experiments.study.invocation import typed


def main(arguments: list[str]) -> int:
    """Write the page, and print its path and size; returns the exit code.

    Args:
        arguments: the name or the file of a study, or none for all that are recorded; ``--runs_root=DIR``.

    Raises:
        UsageError: no such study, no tables of it, or an unknown flag.
    """
    name, runs = "", Path("runs")
    for argument in arguments:
        if argument.startswith("-"):
            runs = runs_root([argument], "report")
        elif name:
            raise UsageError(f"report {name} {argument}: one study at a time, or all without a name")
        else:
            name = argument
    if not name:
        page = write_whole_page(runs, runs / PAGE)
    else:
        study_kind(name)  # which reads the file
        name, _ = locate_study(name)
        if long_table(tables_folder(runs / name)).is_file():
            page = write_study_page(runs / name)
        elif long_table(RESULTS / name).is_file():
            print(f"{runs / name} has no tables: the page is that of the record, {RESULTS / name}", file=sys.stderr)
            page = write_recorded_page(name, runs / OF_RECORD / name / PAGE)
        else:
            raise UsageError(f"report {name}: no tables in {runs / name} nor in {RESULTS}: {typed('run', name)} first")
    print(f"{page} ({page.stat().st_size / 1e6:.1f} MB)")
    return 0
