"""Verifies the record of the study: all that can be made again, and on request all that is measured but times.

Bytes by formula, MACs, parameters, shares, sums over devices and layers, notes, and the rows of all tables are made
again. Measured numbers of the record are the input of the sums.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from experiments.errors import RunFailedError, UsageError
from experiments.group_parallel.config import GroupParallel, load
from experiments.group_parallel.one_step import Case, StepCost
from experiments.group_parallel.rank_network import rank_network
from experiments.group_parallel.tables import case_items, cores_notes, measure, measurement_key, run_record, summary
from experiments.measure.table import NOTE_COLUMNS, Item, Value, gather
from experiments.report.tables import DamagedTableError, read_about, read_csv, read_table, read_text
from experiments.report.verify import SAME, compare_csv, compare_texts, fault, first_lines
from experiments.store.runs import provenance
from gconv.cost import Latency

NOT_AGAIN = ("step_time", "step_time_lower", "step_time_upper", "output_difference", "gradient_difference")
MEMORY = 0.01  # relative difference of memory that kernels make, which copy more or less
CORES = r"\d+ processes share (\d+) cores: .*"  # note of ``cores_notes``

Key = tuple[str, str, str, str]  # variant, measure, layer and null of a row of the long table


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
        about = read_about(record / "study.json", ["question", "key", "overrides"])
        if not isinstance(about["overrides"], list):
            raise DamagedTableError(record / "study.json", f"overrides {about['overrides']!r}: not a list of flags")
        study = load(name, about["overrides"])
        items = recorded_items(study, table)
        differences = _compare_rows(path, table, items)
        if not differences:
            differences = _compare_values(path, table, items, study.name, SAME)
            differences += compare_texts(
                record / "summary.txt", read_text(record / "summary.txt"), f"{summary(table)}\n"
            )
        differences += _compare_notes(record, study, items)
        differences += _compare_runs(record, study, about)
    except (UsageError, OSError) as error:
        return [fault(error)], ""
    if not again:
        return differences, "all but what was measured made again"
    try:
        measured, of = measured_again(study)
    except RunFailedError as error:
        return [*differences, f"{record}: measured again: failed: {error}"], ""
    differences += _compare_values(path, table, measured, study.name, MEMORY)
    return differences, f"measured again on {of} processes, all but times and the last bits of sums"


def measured_again(study: GroupParallel) -> tuple[dict[str, list[Item]], int]:
    """Measure with one timed step; returns the values that do not depend on the machine, and the number of processes.

    Raises:
        RunFailedError: a process failed.
    """
    seen = measure(replace(study, repeats=1))
    values = {case: [i for i in items if getattr(i, "measure", "") not in NOT_AGAIN] for case, items in seen.items()}
    return values, max(case.devices for case in study.cases)


def recorded_items(study: GroupParallel, table: pd.DataFrame) -> dict[str, list[Item]]:
    """Return all values and notes of each case, with measured numbers of the record in place of new ones."""
    recorded = dict(zip(_keys(table), table["value"], strict=True))
    return {case.name: list(case_items(case, _costs(case, recorded))) for case in study.cases}


def _costs(case: Case, recorded: Mapping[Key, float]) -> list[StepCost]:
    """Return the costs of each device as the record has them; parameters are counted, of the bytes only sums known."""
    with torch.device("meta"):
        model = case.build()
    plan = case.plan(model)

    def number(measure: str, layer: str = "", null: str = "") -> float:
        return recorded.get((case.name, measure, layer, null), 1)  # a row that is missing is named as such

    costs = []
    for rank in range(case.devices):
        learned = sum(p.numel() for p in rank_network(model, plan, rank).parameters())
        first = rank == 0  # its bytes stand for those of all devices
        layers = case.bytes_by_formula(plan, rank, learned)
        sent = {layer: number("sent", layer) if first else 0.0 for layer in layers}
        into_grouped = number("sent_into_grouped") * sum(sent.values())
        nulls = ("", "float64", "rounding") if plan.placement.ranks > 1 else ()
        difference = {
            null: (number("output_difference", null=null), number("gradient_difference", null=null)) for null in nulls
        }
        time = Latency(number("step_time"), number("step_time_lower"), number("step_time_upper"))
        memory: Any = max(number(f"memory_of_device_{rank + 1}"), 1)  # a table without memory gives no ratio
        costs.append(StepCost(learned, memory, sent, into_grouped, difference, time))
    return costs


def _keys(table: pd.DataFrame) -> list[Key]:
    return list(zip(*(table[column] for column in ("variant", "measure", "layer", "null")), strict=True))


def _values(items: Mapping[str, list[Item]]) -> dict[Key, Value]:
    return {
        (variant, item.measure, item.layer, item.null): item
        for variant, of_variant in items.items()
        for item in of_variant
        if isinstance(item, Value)
    }


def _place(key: Key) -> str:
    variant, measure, layer, null = key
    return f"{variant}, {measure}{layer and f' of {layer}'}{null and f' ({null})'}"


def _compare_rows(path: Path, table: pd.DataFrame, items: Mapping[str, list[Item]]) -> list[str]:
    """Return a line on each quantity that the table lacks, and on each row that it has too much."""
    wanted, lacking, lines = _values(items), {}, []
    keys = _keys(table)
    for variant, quantity, layer, null in wanted.keys() - set(keys):
        lacking.setdefault(f"{quantity}{null and f' ({null})'}", set()).add(f"{variant}{layer and f' of {layer}'}")
    for quantity, places in sorted(lacking.items()):
        lines.append(f"{path}: {quantity} is missing for {', '.join(sorted(places))}")
    seen: set[Key] = set()
    for number, key in enumerate(keys, 2):
        if key not in wanted or key in seen:
            what = "a second row" if key in seen else "no value of the study"
            lines.append(f"{path}: line {number}, {_place(key)}: {what}")
        seen.add(key)
    return first_lines(path, lines)


def _compare_values(
    path: Path, table: pd.DataFrame, items: Mapping[str, list[Item]], study: str, memory: float
) -> list[str]:
    """Return a line on each value that the table has differently; ``memory`` is the relative difference that it may."""
    wanted, lines = _values(items), []
    for number, (key, (_, row)) in enumerate(zip(_keys(table), table.iterrows(), strict=True), 2):
        if (value := wanted.get(key)) is None:
            continue
        place = f"{path}: line {number}, {_place(key)}"
        tolerance = memory if "memory" in value.measure else SAME
        if not math.isclose(row["value"], value.value, rel_tol=tolerance):
            what = "empty" if math.isnan(row["value"]) else f"{row['value']:.10g}"
            lines.append(f"{place}: {what}" + (f"; it is {value.value:.10g}" if what != "empty" else ""))
        for column, right in (("study", study), ("groups", value.groups), ("unit", value.unit)):
            if row[column] != right:
                lines.append(f"{place}: {column} {row[column] or '-'}; it is {right or '-'}")
        if not math.isnan(row["seed"]):
            lines.append(f"{place}: seed {row['seed']:.0f}; nothing is trained")
    return first_lines(path, lines)


def _compare_notes(record: Path, study: GroupParallel, items: Mapping[str, list[Item]]) -> list[str]:
    """Compare the notes; the number of cores of the machine is that of the first note on them."""
    path = record / "notes.csv"
    recorded = read_csv(path, NOTE_COLUMNS, dtype=str, keep_default_na=False)
    cores = [int(found[1]) for note in recorded["note"] if (found := re.fullmatch(CORES, note))]
    notes = [
        gather([*items[case.name], *(cores_notes(case, cores[0]) if cores else ())], study.name, case.name, None).notes
        for case in study.cases
    ]
    return compare_csv(path, pd.concat(notes, ignore_index=True).to_csv(index=False))


def _compare_runs(record: Path, study: GroupParallel, about: Mapping[str, Any]) -> list[str]:
    """Compare the rows of runs, which have one provenance but for the date, and the notes in ``study.json``."""
    path, columns = record / "runs.csv", list(provenance(""))
    recorded = read_csv(path, ["variant", *columns], dtype=str, keep_default_na=False)
    if recorded.empty:
        return [f"{path}: has 0 rows, and the runs give {len(study.cases)}"]
    first = {column: recorded[column].iloc[0] for column in columns}
    dates = dict(zip(recorded["variant"], recorded["date"], strict=True))
    rows = [{**run_record(case), **first, "date": dates.get(case.name, first["date"])} for case in study.cases]
    lines = compare_csv(path, pd.DataFrame(rows).to_csv(index=False))
    of_study = {"question": study.question, "key": measurement_key(study, first["device"])}
    for key, right in of_study.items():
        if about[key] != right:
            lines.append(f"{record / 'study.json'}: {key} {about[key]}; the study has {right}")
    return lines
