"""A study's tables, made again from its record.

They are computed from the packed runs, to verify the record, or copied from it, to draw it.
"""

from __future__ import annotations

import re
from pathlib import Path

from experiments.measure.table import save_table
from experiments.report.study_tables import check_measures, write_arrays, write_tables
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
from experiments.report.write_record import SPEED, packed_runs
from experiments.store.packed import NotGatheredError, read_done, unpack
from experiments.store.runs import Run, file_name, write_atomic

FROM_RUNS = ("measures", "runs", "notes", "curves", "layers")  # tables that need the runs
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
        return [*FROM_RUNS, *FROM_MEASURES], f"{len(runs)} packed runs"
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
        try:
            unpack(paths[0], folder)
            config, _ = read_done(folder)
            check_measures(folder)
        except NotGatheredError as error:
            raise DamagedTableError(paths[0], str(error).removeprefix("damaged: ")) from None
        except DamagedTableError as error:
            raise DamagedTableError(paths[0], error.damage.removeprefix(f"{folder}/")) from None
        runs.append(Run(row["variant"], config, folder))
    if runs and lacking:
        raise DamagedTableError(record / "runs.csv", f"{lacking[0]} is the hash of no packed run")
    return runs


def _copy_tables(record: Path, study_folder: Path) -> None:
    for source in (long_table(record), *sorted(record.glob("*.csv")), record / "study.json"):
        content, name = read_content(source), source.name.removesuffix(COMPRESSED)
        write_atomic(tables_folder(study_folder) / name, lambda file, content=content: file.write(content))
