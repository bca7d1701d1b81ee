"""The tables of a study, made of its measured runs alone: neither weights nor images are needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from experiments.measure.table import COLUMNS, NOTE_COLUMNS, save_arrays, save_table
from experiments.models import build_model
from experiments.report.summary import SEED_DRAWN, tables_folder, tradeoff_tables
from experiments.report.tables import DamagedTableError, read_about, read_arrays, read_csv, read_table
from experiments.store.packed import ARRAYS, for_pictures
from experiments.store.runs import Run, config_hash, file_name, public, write_json
from gconv.cost import count_cost

COUNTS = ("classes", "test_images")  # counts of a run's images, noted when the run is measured
MISSING = ["variant", "seed", "status", "reason", "config_hash"]  # columns of the table of runs without a result
# Keys of a model that set its groups and widths.
OF_GROUPS = {
    *("groups", "cardinality", "spatial", "variant", "replicas"),
    *("width", "scale", "multiplier", "equal", "equal_to", "budget"),
}


def write_tables(
    study_folder: Path, runs: Sequence[Run], speed: pd.DataFrame, question: str, overrides: dict[str, Any]
) -> None:
    """Gather the measures of all runs in the study's tables.

    Args:
        study_folder: folder of the study; its name is that of the study.
        runs: done and measured, in the order of the tables.
        speed: rows of the long table about the architectures; they have no seed.
        question: question of the study.
        overrides: keys that the command line changed.

    Raises:
        DamagedTableError: names the file of a run that is damaged.
    """
    folder, study = tables_folder(study_folder), study_folder.name
    measured, notes, counts = [], [], []
    for run in runs:
        of_run = {"study": study, "variant": run.variant}  # it may have been measured in another study
        measured.append(read_table(run.folder / "measures.csv").assign(**of_run))
        note = read_csv(run.folder / "notes.csv", NOTE_COLUMNS, keep_default_na=False)
        notes.append(note.assign(**of_run))
        about = read_about(run.folder / "measured.json", COUNTS)
        counts.append({key: about[key] for key in COUNTS})
    whole = pd.concat([*measured, *([speed] if len(speed) else [])], ignore_index=True)
    save_table(folder / "measures.csv", whole)
    for name, of_costs in tradeoff_tables(whole).items():
        save_table(folder / f"{name}.csv", of_costs)
    curves = [
        {"variant": run.variant, "seed": run.seed, "test_accuracy": np.nan, **epoch}
        for run in runs
        for epoch in run.metrics()
    ]
    save_table(folder / "curves.csv", pd.DataFrame(curves))
    save_table(folder / "layers.csv", _layer_costs(runs, counts))
    save_table(folder / "notes.csv", pd.concat(notes, ignore_index=True))
    results = [
        {"variant": run.variant, **public(run.result or {}), "family": _family(run.config), **count}
        for run, count in zip(runs, counts, strict=True)
    ]
    save_table(folder / "runs.csv", pd.DataFrame(results))
    write_json(folder / "study.json", {"question": question, "overrides": public(overrides)})
    for stale in folder.glob("*.tex"):  # of the tables before these
        stale.unlink()
    write_arrays(study_folder, runs)


def missing_table(runs: Iterable[Run]) -> pd.DataFrame:
    """Return the runs that ended without a result, and the reason, by variant and seed."""
    rows = []
    for run in runs:
        result = run.result or run.failure
        if result is not None and result["status"] != "done":
            rows.append([run.variant, run.seed, result["status"], result["reason"], config_hash(run.config)])
    return pd.DataFrame(sorted(rows), columns=pd.Index(MISSING))


def read_missing(path: Path) -> pd.DataFrame:
    """Return a table of runs without a result; one without any if there is no such file.

    Raises:
        DamagedTableError: it is none, or not whole.
    """
    if not path.is_file():
        return pd.DataFrame(columns=pd.Index(MISSING))
    texts = dict.fromkeys(("variant", "status", "reason", "config_hash"), str)
    table = read_csv(path, MISSING[:4], numbers=("seed",), dtype=texts, keep_default_na=False)
    if not (table["seed"] % 1 == 0).all():
        raise DamagedTableError(path, "a seed is not a whole number")
    return table.reindex(columns=MISSING, fill_value="")  # older tables have no hashes


def write_arrays(study_folder: Path, runs: Sequence[Run]) -> None:
    """Write the arrays that figures draw, of the runs with the seed that is drawn, next to the tables.

    Raises:
        DamagedTableError: names the file of a run that is damaged.
    """
    folder = tables_folder(study_folder)
    for stale in folder.glob("*.npz"):
        stale.unlink()
    for run in runs:
        if run.seed == SEED_DRAWN and (run.folder / ARRAYS).is_file():
            arrays = for_pictures(read_arrays(run.folder / ARRAYS))  # as a packed run has them
            save_arrays(folder / f"{file_name(run.variant)}-seed{run.seed}.npz", arrays)


def _family(config: dict[str, Any]) -> str:
    """Return a hash of a run's configuration without its groups and widths, which is that of other seeds too."""
    model = {key: value for key, value in config["model"].items() if key not in OF_GROUPS}
    return config_hash({**config, "model": model, "variant": None, "seed": None})


def is_tabled(folder: Path) -> bool:
    """Return True if a run was measured and has the counts of its images, which older measurements lack."""
    try:
        read_about(folder / "measured.json", COUNTS)
    except DamagedTableError:
        return False
    return True


def check_measures(folder: Path, counts: Sequence[str] = COUNTS) -> None:
    """Read the measures of a run, so that damage is found before anything is written.

    Args:
        folder: folder of the run, which was measured.
        counts: keys that ``measured.json`` has at least.

    Raises:
        DamagedTableError: names the file that is damaged.
    """
    read_table(folder / "measures.csv")
    read_csv(folder / "notes.csv", NOTE_COLUMNS)
    read_about(folder / "measured.json", counts)
    if (folder / ARRAYS).is_file():
        read_arrays(folder / ARRAYS)


def speed_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a long table that are about architectures, not about runs: times and memory."""
    return table[table["seed"].isna()].reset_index(drop=True)


def kept_speed(study_folder: Path) -> pd.DataFrame:
    """Return the newest times of a study, measured here or taken from a record; an empty table without any."""
    files = sorted(tables_folder(study_folder).glob("speed-*.csv"), key=lambda path: path.stat().st_mtime)
    return read_table(files[-1]) if files else pd.DataFrame(columns=pd.Index(COLUMNS))


def _layer_costs(runs: Sequence[Run], counts: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return the parameters, MACs and activations of every layer of every variant."""
    rows = []
    of_variant = {run.variant: (run, count) for run, count in zip(runs, counts, strict=True)}
    for variant, (run, count) in of_variant.items():
        size = run.config["views"]["crop_size"]
        with torch.device("meta"):
            model = build_model(**run.config["model"], classes=count["classes"], input_size=size)
            cost = count_cost(model, (3, size, size))
        rows += [{"variant": variant, **asdict(layer)} for layer in cost.layers]
    return pd.DataFrame(rows)
