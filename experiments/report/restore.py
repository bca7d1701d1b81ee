"""A study's tables, made again from its record.

They are computed from the packed runs, to verify the record, or copied from it, to draw it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from experiments.measure.table import save_table
from experiments.report.study_tables import check_measures, missing_table, write_arrays, write_tables
from experiments.report.summary import SEED_DRAWN, tables_folder, tradeoff_tables
from experiments.report.tables import (
    COMPRESSED,
    DamagedTableError,
    long_table,
    read_about,
    read_content,
    read_csv,
    read_table,
)
from experiments.report.write_record import PACKED, SPEED, packed_runs
from experiments.store.packed import NotGatheredError, read_ended, unpack
from experiments.store.runs import Run, file_name, write_atomic

FROM_RUNS = ("measures", "runs", "missing", "notes", "curves", "layers")  # tables that need the runs
FROM_MEASURES = ("tradeoff", "fronts", "equal_cost")


def restore_tables(name: str, results: Path, study_folder: Path) -> tuple[list[str], str]:
    """Make the tables of a study again in an empty folder.

    Args:
        name: name of the study.
        results: folder of the record.
        study_folder: the folder, as in the run store.

    Returns:
        The names of the tables that were computed, and in words what from.

    Raises:
        DamagedTableError: names the file of the record that is damaged, or lacks some of the packed runs.
    """
    record = results / name
    runs = _unpack_runs(record, results, study_folder)
    if runs:
        about = read_about(record / "study.json", ["question", "overrides"])
        if not isinstance(about["overrides"], dict):
            raise DamagedTableError(record / "study.json", f"overrides {about['overrides']!r}: not keys and values")
        write_tables(study_folder, runs, read_table(record / SPEED), about["question"], about["overrides"])
        diverged = _unpack_diverged(record, study_folder)
        save_table(tables_folder(study_folder) / "missing.csv", missing_table(diverged))
        return [*FROM_RUNS, *FROM_MEASURES], f"{len(runs) + len(diverged)} packed runs"
    _copy_tables(record, study_folder)
    for table, content in tradeoff_tables(read_table(long_table(record))).items():
        save_table(tables_folder(study_folder) / f"{table}.csv", content)
    return [*FROM_MEASURES], "measures.csv alone, since no runs are packed"


def copy_record(name: str, results: Path, study_folder: Path) -> None:
    """Copy what figures are drawn from to an empty folder: tables of a record, and arrays of its packed runs.

    Args:
        name: name of the study.
        results: folder of the record.
        study_folder: the folder, as in the run store.

    Raises:
        DamagedTableError: as ``restore_tables``.
    """
    record = results / name
    _copy_tables(record, study_folder)
    write_arrays(study_folder, _unpack_runs(record, results, study_folder, seed=SEED_DRAWN))


def _unpack_runs(record: Path, results: Path, study_folder: Path, seed: int | None = None) -> list[Run]:
    """Unpack the runs of a record's table, of all seeds or of one; none if no run is packed."""
    runs, lacking = [], []
    table = read_csv(record / "runs.csv", ["variant", "seed"], dtype=str)
    if "config_hash" not in table:
        return []
    if seed is not None:
        table = table[table["seed"] == str(seed)]
    if (doubled := table["config_hash"].dropna().duplicated()).any():
        twice = table["config_hash"].dropna()[doubled].iloc[0]
        raise DamagedTableError(record / "runs.csv", f"two rows have the hash {twice}")
    for _, row in table.fillna("").iterrows():
        if not re.fullmatch(r"[0-9a-f]{8}", row["config_hash"]):
            lacking.append(row["config_hash"] or "an empty cell")
            continue
        paths = packed_runs(results, row["config_hash"])
        paths = [path for path in paths if path.parent.parent == record] or paths
        if not paths:
            lacking.append(row["config_hash"])
            continue
        folder = study_folder / f"{file_name(row['variant'])}-seed{row['seed']}-{row['config_hash']}"
        config, result = _unpack(paths[0], folder)
        if result["status"] != "done":
            raise DamagedTableError(record / "runs.csv", f"{row['config_hash']} is the hash of a run that diverged")
        try:
            check_measures(folder)
        except DamagedTableError as error:
            raise DamagedTableError(paths[0], error.damage.removeprefix(f"{folder}/")) from None
        runs.append(Run(row["variant"], config, folder))
    if runs and lacking:
        raise DamagedTableError(record / "runs.csv", f"{lacking[0]} is the hash of no packed run")
    return runs


def _unpack_diverged(record: Path, study_folder: Path) -> list[Run]:
    """Unpack the packed runs of a record that are not in its table: all of them diverged."""
    hashes = set(read_csv(record / "runs.csv", ["config_hash"], dtype=str)["config_hash"])
    runs = []
    for path in sorted((record / PACKED).glob("*.zip")):
        if path.stem[-8:] not in hashes:
            config, result = _unpack(path, study_folder / path.stem)
            if result["status"] == "done":
                raise DamagedTableError(record / "runs.csv", f"no row has the hash of {path.name}, which is done")
            variant = read_about(study_folder / path.stem / "config.json", ["variant"])["variant"]
            runs.append(Run(variant, config, study_folder / path.stem))
    return runs


def _unpack(path: Path, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Unpack a run into a new folder; returns its configuration and its result."""
    try:
        unpack(path, folder)
        return read_ended(folder)
    except NotGatheredError as error:
        raise DamagedTableError(path, str(error).removeprefix("damaged: ")) from None


def _copy_tables(record: Path, study_folder: Path) -> None:
    for source in (long_table(record), *sorted(record.glob("*.csv")), record / "study.json"):
        content, name = read_content(source), source.name.removesuffix(COMPRESSED)
        write_atomic(tables_folder(study_folder) / name, lambda file, content=content: file.write(content))
