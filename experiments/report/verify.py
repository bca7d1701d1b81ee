"""Recomputes the record in ``results/`` from its packed runs, and names every number that differs."""

from __future__ import annotations

import csv
import io
import math
from itertools import zip_longest
from pathlib import Path

from experiments.measure.table import save_table
from experiments.report.marked_text import read_block
from experiments.report.study_tables import write_tables
from experiments.report.summary import read_measures, summary, tables_folder, tradeoff_tables
from experiments.report.tables import (
    COMPRESSED,
    DamagedTableError,
    long_table,
    read_about,
    read_content,
    read_csv,
    read_table,
)
from experiments.report.write_record import SPEED, packed_runs, page_block
from experiments.store.packed import NotGatheredError, read_done, unpack
from experiments.store.runs import Run, file_name, write_atomic

FROM_RUNS = ("measures", "runs", "notes", "curves", "layers")  # tables that need the runs
FROM_MEASURES = ("tradeoff", "fronts", "equal_cost")
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
        runs, lacking = _unpack_runs(record, results, study_folder)
        speed = record / SPEED
        if runs and not lacking:
            about = read_about(record / "study.json", ["question", "overrides"])
            write_tables(study_folder, runs, read_table(speed), about["question"], about["overrides"])
            done, files = f"{len(runs)} packed runs", [*FROM_RUNS, *FROM_MEASURES]
        else:
            for path in (long_table(record), record / "runs.csv", record / "study.json"):
                _copy(path, tables_folder(study_folder) / path.name.removesuffix(COMPRESSED))
            for table, content in tradeoff_tables(read_table(long_table(record))).items():
                save_table(tables_folder(study_folder) / f"{table}.csv", content)
            done, files = "measures.csv alone, since no runs are packed", [*FROM_MEASURES]
            if runs:
                done = f"measures.csv alone, since {len(lacking)} of {len(lacking) + len(runs)} runs are not packed"
        differences = []
        for table in files:
            committed = long_table(record) if table == "measures" else record / f"{table}.csv"
            differences += compare_tables(committed, tables_folder(study_folder) / f"{table}.csv")
        text = f"{summary(read_measures(study_folder))}\n"
        differences += compare_texts(record / "summary.txt", (record / "summary.txt").read_text(encoding="utf-8"), text)
        differences += compare_block(page, f"results {name}", page_block(study_folder))
    except (DamagedTableError, OSError) as error:
        return [error.damage if isinstance(error, DamagedTableError) else f"{error.filename}: {error.strerror}"], ""
    return differences, done


def _unpack_runs(record: Path, results: Path, study_folder: Path) -> tuple[list[Run], list[str]]:
    """Unpack the runs of a record's table; returns them, and the hashes of those that are not packed."""
    runs, lacking = [], []
    table = read_csv(record / "runs.csv", ["variant", "seed"], dtype=str)
    if "config_hash" not in table:
        return [], list(table["seed"])
    for _, row in table.iterrows():
        paths = packed_runs(results, row["config_hash"])
        paths = [path for path in paths if path.parent.parent == record] or paths
        if not paths:
            lacking.append(row["config_hash"])
            continue
        folder = study_folder / f"{file_name(row['variant'])}-seed{row['seed']}-{row['config_hash']}"
        try:
            unpack(paths[0], folder)
            config, _ = read_done(folder)
        except NotGatheredError as error:
            raise DamagedTableError(paths[0], str(error).removeprefix("damaged: ")) from None
        runs.append(Run(row["variant"], config, folder))
    return runs, lacking


def _copy(source: Path, target: Path) -> None:
    content = read_content(source)
    write_atomic(target, lambda file: file.write(content))


def compare_tables(committed: Path, fresh: Path) -> list[str]:
    """Compare two tables cell by cell; returns a line on each difference, the first of many alone."""
    theirs, ours = _cells(committed), _cells(fresh)
    columns, wanted = (table[0] if table else [] for table in (theirs, ours))
    if columns != wanted:
        return [f"{committed}: has the columns {','.join(columns)}; the runs give {','.join(wanted)}"]
    lines = []
    if len(theirs) != len(ours):
        lines.append(f"{committed}: has {len(theirs) - 1} rows, and the runs give {len(ours) - 1}")
    for number, (row, right) in enumerate(zip(theirs[1:], ours[1:], strict=False), 2):
        for column, cell, correct in zip(columns, row, right, strict=False):
            if not _same(cell, correct):
                lines.append(f"{committed}: line {number}, {column}: {cell or '-'}; the runs give {correct or '-'}")
    return first_lines(committed, lines)


def _cells(path: Path) -> list[list[str]]:
    try:
        return list(csv.reader(io.StringIO(read_content(path).decode())))
    except UnicodeDecodeError as error:
        raise DamagedTableError(path, str(error)) from None


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
    """Compare the block of a page with the text that a command writes into it; no difference without the block."""
    text = read_block(page, name) if page.is_file() else None
    if text is None:
        return []
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
