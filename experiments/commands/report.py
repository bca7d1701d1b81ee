"""The ``report`` command: one self-contained HTML page of a study, or of the whole record with the ledger."""

from __future__ import annotations

import sys
from pathlib import Path

from experiments.commands.arguments import OF_RECORD, runs_root, study_folder
from experiments.errors import UsageError
from experiments.report.html_page import PAGE, write_recorded_page, write_study_page, write_whole_page
from experiments.report.records import RESULTS
from experiments.report.summary import tables_folder
from experiments.report.tables import long_table
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
        folder = study_folder([name, f"--runs_root={runs}"], "report")
        record = RESULTS / folder.name
        if long_table(tables_folder(folder)).is_file():
            page = write_study_page(folder)
        elif long_table(record).is_file():
            print(f"{folder} has no tables: the page is that of the record, {record}", file=sys.stderr)
            page = write_recorded_page(folder.name, runs / OF_RECORD / folder.name / PAGE)
        else:
            raise UsageError(f"report {name}: no tables in {folder} nor in {RESULTS}: {typed('run', name)} first")
    print(f"{page} ({page.stat().st_size / 1e6:.1f} MB)")
    return 0
