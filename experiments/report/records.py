"""The tables of a study as evidence for the ledger: from ``runs/`` and from ``results/``, the record.

``analysis.claims.RULE`` lists the records that are no evidence, with the reasons.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.evidence import Record, sort_evidence
from experiments.report.data_names import data_names
from experiments.report.tables import DamagedTableError, long_table, read_about, read_csv, read_table
from experiments.store.runs import config_hash, short_commit
from experiments.study.catalogue import HOME, TRAINED, study_kind, study_names
from experiments.study.config import Study, load_study

RESULTS = HOME / "results"
OF_A_MACHINE = ("recipe.device", "recipe.precision")  # they change the hash of a run, but make no trial
OF_PLACES = ("--runs_root", "--device")  # flags of ``group-parallel`` that change nothing that it measures


def find_records(study: str, runs: Path, results: Path, trials: bool = False) -> list[Record]:
    """Return the records of a study, in ``runs`` and then in ``results``; damaged ones are named and left out.

    Args:
        study: its name.
        runs: folder of the run store.
        results: folder of the record.
        trials: True if a study that the command line changed is evidence.
    """
    kept = _whole_record(study, "results", results / study)
    known = set() if kept is None else set(_column(_runs(results / study), "data_hash"))
    current = _whole_record(study, str(runs), runs / study / "tables", known, trials)
    return [record for record in (current, kept) if record is not None]


def _whole_record(study: str, place: str, folder: Path, *more: Any) -> Record | None:
    try:
        return read_record(study, place, folder, *more)
    except DamagedTableError as error:
        print(f"warning: {error}; the ledger goes on without this record", file=sys.stderr, flush=True)
        return None


def read_record(
    study: str, place: str, folder: Path, known_data: set[str] | None = None, trials: bool = True
) -> Record | None:
    """Return the record of a study in one folder of tables; None if the folder has none.

    Args:
        study: its name.
        place: name of the folder's root in messages.
        folder: with the long table, and ``runs.csv``, ``missing.csv`` and ``study.json`` where they were written.
        known_data: hashes of the study's images, by the record; None: whatever images there are, they are the record's.
        trials: True if a study that the command line changed is evidence.
    """
    if not long_table(folder).is_file():
        return None
    table, runs, missing = read_table(long_table(folder)), _runs(folder), _csv(folder / "missing.csv")
    lost, unlearned, refused = sort_evidence(table, runs, missing)
    trial = _trial(study, folder, runs, known_data)
    if trial and not trials:
        refused = f"a trial ({trial}); make claims ARGS=--trials counts it"
    return Record(study, place, table, _hardware(runs), lost, unlearned, trial, refused)


def _trial(study: str, folder: Path, runs: pd.DataFrame, known_data: set[str] | None) -> str:
    """Return the difference between the runs and those of the study's file; empty where there is none."""
    overrides = _overrides(folder / "study.json")
    if study not in study_names() or study_kind(study) != TRAINED:
        return _as_flags({key: value for key, value in overrides.items() if key not in (*OF_A_MACHINE, "seeds")})
    asked = load_study(study, [f"--{key}={overrides[key]}" for key in (*OF_A_MACHINE, "profile") if key in overrides])
    if "profile" in overrides and {v.dataset for v in asked.variants} != {
        v.dataset for v in load_study(study).variants
    }:
        return f"--profile={overrides['profile']}, which takes other images"
    changed = {
        key: value
        for key, value in overrides.items()
        if key.startswith(("data.", "model.", "recipe.")) and key not in OF_A_MACHINE
    }
    changed |= {
        key: value
        for key, value in overrides.items()
        if key.startswith("measures.") and _lacks_measures(key, value, asked)
    }
    other_data = known_data is not None and not set(_column(runs, "data_hash")) <= known_data
    if "dataset" in overrides and other_data:
        changed["dataset"] = overrides["dataset"]
    if changed:
        return _as_flags(changed)
    return "" if _as_in_file(asked, runs) else f"other runs than configs/{study}.yaml asks for now"


def _as_in_file(study: Study, runs: pd.DataFrame) -> bool:
    """Return True if each run is, by its hash, one of the study's file; a table without hashes is believed."""
    if not {"config_hash", "data_hash", "seed", "variant"} <= set(runs):
        return True
    variants = {v.name: v for v in study.variants}
    return all(
        row["variant"] in variants
        and config_hash(variants[row["variant"]].run_config(row["data_hash"], int(row["seed"]))) == row["config_hash"]
        for _, row in runs.iterrows()
    )


def _lacks_measures(key: str, value: Any, study: Study) -> bool:
    """Return True if fewer measures were taken than the study's file asks for."""
    return value < asdict(study.measures).get(key.removeprefix("measures."), value)


def _overrides(path: Path) -> dict[str, Any]:
    """Return the changes of the command line; for ``group-parallel`` a list of flags."""
    given = read_about(path, []).get("overrides", {}) if path.is_file() else {}
    if isinstance(given, Mapping):
        return dict(given)
    pairs = [flag.removeprefix("--").partition("=") for flag in given if not flag.startswith(OF_PLACES)]
    return {key: value for key, _, value in pairs}


def _as_flags(overrides: Mapping[str, Any]) -> str:
    return " ".join(f"--{key}={value}" for key, value in overrides.items())


def _hardware(runs: pd.DataFrame) -> str:
    if not len(runs):
        return "hardware not recorded"
    runs = runs.fillna("unknown")
    where = dict.fromkeys(f"{r['device']}, {r['precision']}, torch {r['torch']}" for _, r in runs.iterrows())
    commits = dict.fromkeys(short_commit(c) for c in runs["commit"])
    return f"{'; '.join(where)}; dataset {', '.join(data_names(runs))}; commit {', '.join(commits)}"


def where_measured(studies: Iterable[str], results: Path = RESULTS) -> tuple[list[str], list[str]]:
    """Return the hardware, without the number of threads, and the images of recorded studies."""
    tables = [runs for study in studies if len(runs := _runs(results / study))]
    devices = dict.fromkeys(re.sub(r", \d+ threads$", "", d) for runs in tables for d in runs["device"].dropna())
    of_images = [runs[runs["data_hash"].notna()] for runs in tables if "data_hash" in runs]
    images = dict.fromkeys(name for runs in of_images for name in data_names(runs))
    return list(devices), list(images)


def _runs(folder: Path) -> pd.DataFrame:
    return _csv(folder / "runs.csv")


def _csv(path: Path) -> pd.DataFrame:
    return read_csv(path, [], dtype=str) if path.is_file() else pd.DataFrame()


def _column(table: pd.DataFrame, name: str) -> list[str]:
    return list(table[name].dropna()) if name in table else []
