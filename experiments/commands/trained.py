"""Studies whose variants are trained and measured, as a kind of study; see ``kinds.py``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from experiments.launch import is_rank, launch_ranks, run_as_rank
from experiments.pipeline import run_study
from experiments.report.restore import copy_record
from experiments.report.retrain import retrain
from experiments.report.summary import draw_figures
from experiments.report.verify import verify_study
from experiments.report.write_record import PAGE, write_study_record
from experiments.study.config import load_study, study_help
from experiments.study.status import study_status


def run(name: str, flags: list[str]) -> int:
    """Train and measure the runs that are not done, draw and report; returns the exit code."""
    study = load_study(name, flags)
    if is_rank():
        return run_as_rank(study)
    if study.execution.gpus > 1:
        return launch_ranks(study, ["run", name, *flags])
    return 1 if run_study(study) else 0


def status(name: str, flags: list[str]) -> dict[str, Any]:
    """Return the state of every run, in the form of ``study_status``."""
    return study_status(load_study(name, flags))


def draw(folder: Path) -> list[Path]:
    """Draw the figures of a study's folder from its saved tables; returns the files written."""
    return draw_figures(folder)


def restore(name: str, home: Path, folder: Path) -> None:
    """Copy tables and arrays of the record in ``home`` to a study's folder."""
    copy_record(name, home / "results", folder)


def write_record(folder: Path, home: Path) -> list[Path]:
    """Copy tables and figures to ``results/`` in ``home``, and the table to its docs; returns the files written."""
    return write_study_record(folder, home / "results", home / PAGE)


def verify(name: str, home: Path, flags: list[str] | None) -> tuple[list[str], str]:
    """Recompute a study's record from its packed runs, and with flags train one of them again; see ``Kind.verify``."""
    results = home / "results"
    with tempfile.TemporaryDirectory() as scratch:
        differences, done = verify_study(name, results, home / PAGE, Path(scratch))
        reports = [f"recomputed from {done}"] if done else []
        if flags is not None:
            again, how = retrain(name, results / name, Path(scratch) / name, Path(scratch) / "again", flags)
            differences += again
            reports += [how] if how else []
    return differences, "; ".join(reports)


def flags_help(name: str) -> str:
    """Return every flag of the study, with its type and meaning."""
    return study_help(name)
