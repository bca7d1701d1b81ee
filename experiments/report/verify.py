"""Recomputes the record in ``results/`` from its packed runs, and names every number that differs."""

from __future__ import annotations

import csv
import io
import math
from itertools import zip_longest
from pathlib import Path
from textwrap import shorten

from experiments.errors import UsageError
from experiments.report.marked_text import read_block
from experiments.report.restore import restore_tables
from experiments.report.summary import read_measures, summary, tables_folder
from experiments.report.tables import DamagedTableError, long_table, read_text
from experiments.report.write_record import ON_PAGE, page_block

SAME = 1e-9  # relative difference of two numbers that is the last bits of another library
SHOWN = 5  # differences of one file


def verify_study(name: str, results: Path, page: Path, scratch: Path) -> tuple[list[str], str]:
    """Recompute the tables of a study's record.

    Args:
        name: name of the study.
        results: folder of the record.
        page: with the study's generated table, if it has one.
        scratch: an empty folder.

    Returns:
        A line on each difference, with file, row and number; and the sources of the recomputed tables.
    """
    record, study_folder = results / name, scratch / name
    try:
        files, done = restore_tables(name, results, study_folder)
        differences = []
        for table in files:
            committed = long_table(record) if table == "measures" else record / f"{table}.csv"
            differences += compare_tables(committed, tables_folder(study_folder) / f"{table}.csv")
        text = f"{summary(read_measures(study_folder))}\n"
        differences += compare_texts(record / "summary.txt", read_text(record / "summary.txt"), text)
        block = f"results {name}"
        if name in ON_PAGE or (page.is_file() and read_block(page, block) is not None):
            differences += compare_block(page, block, page_block(study_folder))
    except (UsageError, OSError) as error:
        return [fault(error)], ""
    return differences, done


def fault(error: UsageError | OSError) -> str:
    """Return the file and its fault, without the remedy: the record is verified, not made again."""
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    return error.damage if isinstance(error, DamagedTableError) else str(error)


def compare_tables(committed: Path, fresh: Path) -> list[str]:
    """Compare two tables cell by cell; returns a line on each difference, the first of many alone."""
    return compare_csv(committed, read_text(fresh))


def compare_csv(committed: Path, fresh: str) -> list[str]:
    """Compare a table with the text of a fresh one, as ``compare_tables``."""
    theirs, ours = _cells(read_text(committed)), _cells(fresh)
    columns, wanted = (table[0] if table else [] for table in (theirs, ours))
    if columns != wanted:
        return [f"{committed}: has the columns {','.join(columns)}; the runs give {','.join(wanted)}"]
    lines = []
    if len(theirs) != len(ours):
        lines.append(f"{committed}: has {len(theirs) - 1} rows, and the runs give {len(ours) - 1}")
    for number, (row, right) in enumerate(zip(theirs[1:], ours[1:], strict=False), 2):
        if len(row) != len(right):
            lines.append(f"{committed}: line {number}: has {len(row)} cells; the runs give {len(right)}")
            continue
        for column, cell, correct in zip(columns, row, right, strict=False):
            if not _same(cell, correct):
                found = shorten(cell, 60, placeholder="…") or "-"  # a quote that is not closed spans lines
                lines.append(f"{committed}: line {number}, {column}: {found}; the runs give {correct or '-'}")
    return first_lines(committed, lines)


def _cells(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


def compare_texts(path: Path, text: str, fresh: str, before: int = 0) -> list[str]:
    """Compare two texts word by word; returns a line on the first difference in each of their lines.

    Args:
        path: path of the file that is compared.
        text: its content.
        fresh: the right content.
        before: lines of the file that come before the text.
    """
    theirs, ours = text.rstrip().splitlines(), fresh.rstrip().splitlines()
    lines = []
    for number, (line, right) in enumerate(zip(theirs, ours, strict=False), before + 1):
        for word, wanted in zip_longest(line.split(), right.split(), fillvalue="-"):
            if word != wanted:
                lines.append(f"{path}: line {number}: {word}; the runs give {wanted}")
                break
    if len(theirs) != len(ours):
        lines.append(f"{path}: has {len(theirs)} lines, and the runs give {len(ours)}")
    return first_lines(path, lines)


def compare_block(page: Path, name: str, fresh: str) -> list[str]:
    """Compare the block of a page, which must have it, with the text that a command writes into it."""
    text = read_block(page, name)
    if text is None:
        return [f"{page}: has no lines <!-- {name} --> and <!-- end {name} -->"]
    before = page.read_text(encoding="utf-8").split(f"<!-- {name} -->\n", 1)[0].count("\n") + 1
    return compare_texts(page, text, fresh, before)


def _same(value: str, wanted: str) -> bool:
    """Tell if two cells are the same text, or the same number but for its last bits."""
    if value == wanted:
        return True
    try:
        return math.isclose(float(value), float(wanted), rel_tol=SAME, abs_tol=1e-15)
    except ValueError:
        return False


def first_lines(path: Path, lines: list[str]) -> list[str]:
    """Shorten the differences of one file: the first of many, and how many there are."""
    return lines if len(lines) <= SHOWN else [*lines[:SHOWN], f"{path}: {len(lines) - SHOWN} more differences"]
