"""Verifies the record of the study: its text, what can be counted, and on request all that is measured but times."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pandas as pd

from experiments.errors import RunFailedError
from experiments.group_parallel.config import GroupParallel, load
from experiments.group_parallel.tables import counted_values, measure, summary
from experiments.measure.table import Value
from experiments.report.tables import DamagedTableError, read_about, read_table
from experiments.report.verify import SAME, compare_texts, first_lines

NOT_AGAIN = ("step_time", "step_time_lower", "step_time_upper", "output_difference", "gradient_difference")
MEMORY = 0.01  # relative difference of memory that kernels make, which copy more or less


def verify_record(name: str, results: Path, again: bool) -> tuple[list[str], str]:
    """Recompute what does not depend on the machine.

    Args:
        name: of the study.
        results: folder of the record.
        again: whether to measure on devices again, or to count alone.

    Returns:
        A line on each difference, with file and row; and what was recomputed.
    """
    record = results / name
    path = record / "measures.csv"
    try:
        table = read_table(path)
        given = read_about(record / "study.json", ["overrides"])["overrides"]
        text = (record / "summary.txt").read_text(encoding="utf-8")
        differences = compare_texts(record / "summary.txt", text, f"{summary(table)}\n")
    except (DamagedTableError, OSError) as error:
        return [error.damage if isinstance(error, DamagedTableError) else f"{error.filename}: {error.strerror}"], ""
    study = load(name, given)
    if not again:
        values = {case.name: list(counted_values(case)) for case in study.cases}
        differences += _compare(path, table, values)
        return differences, "bytes by formula, MACs and shares counted again"
    try:
        values, of = measured_again(study)
    except RunFailedError as error:
        return [*differences, f"{record}: measured again: failed: {error}"], ""
    differences += _compare(path, table, values)
    return differences, f"measured again on {of} processes, all but times and the last bits of sums"


def measured_again(study: GroupParallel) -> tuple[dict[str, list[Value]], int]:
    """Measure with one timed step; returns the values that do not depend on the machine, and the number of processes.

    Raises:
        RunFailedError: a process failed.
    """
    seen = measure(replace(study, repeats=1))
    values = {
        case: [item for item in items if isinstance(item, Value) and item.measure not in NOT_AGAIN]
        for case, items in seen.items()
    }
    return values, max(case.devices for case in study.cases)


def _compare(path: Path, table: pd.DataFrame, values: dict[str, list[Value]]) -> list[str]:
    """Return a line on each value that the table lacks, or has differently."""
    key = ["variant", "measure", "layer", "null"]
    recorded = {tuple(row[key]): (number, row["value"]) for number, (_, row) in enumerate(table.iterrows(), 2)}
    lines = []
    for variant, of_variant in values.items():
        for value in of_variant:
            place = f"{variant}, {value.measure}{value.layer and f' of {value.layer}'}"
            entry = recorded.get((variant, value.measure, value.layer, value.null))
            if entry is None:
                lines.append(f"{path}: {place}: is missing; it is {value.value:.10g}")
            elif not math.isclose(entry[1], value.value, rel_tol=MEMORY if "memory" in value.measure else SAME):
                lines.append(f"{path}: line {entry[0]}, {place}: {entry[1]:.10g}; it is {value.value:.10g}")
    return first_lines(path, lines)
