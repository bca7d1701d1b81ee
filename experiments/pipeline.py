"""From a study to its results: train and measure the runs that are not done, test, draw, report."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.tradeoff import disturbed
from experiments.execution.study_runs import train_all
from experiments.measure.registry import measure_run
from experiments.measure.speed import measure_speed
from experiments.measure.table import NOTE_COLUMNS, gather, save_arrays, save_table
from experiments.measure.version import VERSION
from experiments.report import summary as report
from experiments.report.html_page import write_study_page
from experiments.report.records import read_record
from experiments.report.study_report import path_lines, remarks_on_images, remarks_on_notes, study_report
from experiments.report.study_tables import COUNTS, missing_table, write_tables
from experiments.report.tables import DamagedTableError, read_about, read_arrays, read_csv, read_table
from experiments.store import leases
from experiments.store.packed import MARK, NotGatheredError, read_done, take
from experiments.store.runs import config_hash, public, write_atomic, write_json
from experiments.study.config import Study
from experiments.study.plan import PlannedRun, plan
from experiments.tracking import log_results
from experiments.training.process_group import SINGLE_PROCESS, ProcessGroup
from experiments.training.run_context import choose_device, choose_dtype, device_name

PROVENANCE = ("commit", "date", "device", "python", "torch", "torchvision", "numpy", "data_hash")  # of a result


def run_study(
    study: Study, planned: list[PlannedRun] | None = None, process_group: ProcessGroup = SINGLE_PROCESS
) -> int:
    """Train, measure, draw and report.

    Args:
        study: fully resolved.
        planned: its runs, if they are planned already.
        process_group: processes that train each run together; they are dismissed before anything is measured.

    Returns:
        The number of runs that failed.
    """
    planned = plan(study) if planned is None else planned
    take_from_others(study, planned)
    print(_intent(study, planned), flush=True)
    with process_group.joined():
        failed = train_all(study, planned, process_group)
    done = [p for p in planned if (p.run.result or {}).get("status") == "done"]
    missing = missing_table(p.run for p in planned)
    if done:
        with leases.wait_for_lease(
            report.tables_folder(study.folder)
        ):  # processes that divide a study draw it one by one
            print("measuring …", flush=True)
            measure_all(study, done)
            save_table(report.tables_folder(study.folder) / "missing.csv", missing)
            figures = report.draw_figures(study.folder)
            page = write_study_page(study.folder)
            _log_results(study, done[0].run.result or {}, figures)
        print(_study_report(study, done, missing, page))
    return failed


def _study_report(study: Study, done: list[PlannedRun], missing: pd.DataFrame, page: Path) -> str:
    """Return the report at the end of a study; the long tables go to a file."""
    folder, table = report.tables_folder(study.folder), report.read_measures(study.folder)
    write_atomic(folder / "summary.txt", lambda file: file.write(f"{report.summary(table)}\n".encode()))
    remarks = remarks_on_images({p.dataset.key: p.dataset for p in done}.values())
    remarks += remarks_on_notes(read_csv(folder / "notes.csv", NOTE_COLUMNS), missing)
    results = [p.run.result or {} for p in done]
    seconds = pd.DataFrame({"variant": [p.variant.name for p in done], "seconds": [r["seconds"] for r in results]})
    record = read_record(study.name, str(study.execution.runs_root), folder)
    text = study_report(study.name, study.question, table, record, seconds, remarks, study.overrides)
    return "\n".join(["", text, "", *path_lines(study.folder, page)])


def _log_results(study: Study, first: dict[str, Any], figures: list[Path]) -> None:
    """Send tables and figures to wandb, with the provenance of the first run."""
    folder = report.tables_folder(study.folder)
    tables = [path for name in report.TABLES if (path := folder / f"{name}.csv").is_file()]
    about = {key: value for key, value in first.items() if key in PROVENANCE}
    about |= {"question": study.question, "overrides": public(study.overrides)}
    log_results(study.execution.wandb, study.name, study.folder, tables, figures, about)


def _intent(study: Study, planned: list[PlannedRun]) -> str:
    """Return one line on the runs, images, devices and the folder of a study."""
    done = sum((p.run.result or {}).get("status") == "done" for p in planned)
    variants = planned[: len(study.variants)]
    images = {
        f"{p.variant.dataset} ({len(p.dataset.train.labels):,} training and {len(p.dataset.test.labels):,} test images "
        f"of {len(p.dataset.classes)} classes)": None
        for p in variants
    }
    where: dict[str, None] = {}
    for recipe in (p.recipe for p in variants):
        device = choose_device(recipe.device)
        dtype = str(choose_dtype(recipe.precision, device)).removeprefix("torch.")
        where[f"{device_name(device)}, {dtype}"] = None
    variants = f"{len(study.variants)} variant{'s' * (len(study.variants) > 1)}"
    seeds = f"{study.seeds} seed{'s' * (study.seeds > 1)}"
    runs = f"{variants} × {seeds}, {done} of {len(planned)} runs done"
    return f"{study.name}: {runs}; {'; '.join(images)}; {'; '.join(where)}; into {study.folder}"


def take_from_others(study: Study, planned: list[PlannedRun]) -> None:
    """Take runs of the same hash that other studies have in the run store, so that none is trained twice."""
    for p in planned:
        if p.run.result is not None:
            continue
        dtype = str(choose_dtype(p.recipe.precision, choose_device(p.recipe.device))).removeprefix("torch.")
        for folder in sorted(study.execution.runs_root.glob(f"*/*-seed{p.run.seed}-{config_hash(p.run.config)}")):
            try:
                _, result = read_done(folder)
            except NotGatheredError:
                continue
            if folder.parent != study.folder and result.get("precision") == dtype and take(folder, p.run):
                print(f"{p.variant.name}, seed {p.run.seed}: taken from {folder.parent}", flush=True)
                break


def measure_all(study: Study, done: list[PlannedRun]) -> None:
    """Measure every trained run once, and gather all of them in the study's tables, variant by variant."""
    order = [v.name for v in study.variants]
    done = sorted(done, key=lambda p: (order.index(p.variant.name), p.run.seed))
    key = {**asdict(study.measures), "version": VERSION}
    kept: dict[str, list[str]] = {}
    for p in done:
        measured = p.run.folder / "measured.json"
        counts = dict(zip(COUNTS, (len(p.dataset.classes), len(p.dataset.test.labels)), strict=True))
        if _is_measured(p, key):
            if not counts.items() <= read_about(measured, []).items():  # noted since packed runs need them
                write_json(measured, {**key, **counts})
        elif (p.run.folder / MARK).is_file():
            kept.setdefault(p.variant.name, []).append(str(p.run.seed))
        else:
            measured.unlink(missing_ok=True)
            measurements = measure_run(
                study.name, p.run, p.trained_model(), p.fresh_model(), p.context(), study.measures
            )
            save_arrays(p.run.folder / "arrays.npz", measurements.arrays)
            save_table(p.run.folder / "notes.csv", measurements.notes)
            save_table(p.run.folder / "measures.csv", measurements.table)
            write_json(measured, {**key, **counts})
    if kept:
        which = "; ".join(f"{name}, seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}" for name, seeds in kept.items())
        print(
            f"warning: {sum(map(len, kept.values()))} runs were packed without weights and measured otherwise than "
            f"now: what was measured is kept ({which})",
            file=sys.stderr,
            flush=True,
        )
    write_tables(study.folder, [p.run for p in done], _speed(study, done), study.question, study.overrides)


def _is_measured(p: PlannedRun, key: dict[str, Any]) -> bool:
    """Tell if a run was measured with these options and its tables are whole; damaged tables are reported."""
    if not (p.run.folder / "measured.json").is_file():
        return False
    try:
        if not key.items() <= read_about(p.run.folder / "measured.json", []).items():
            return False
        read_table(p.run.folder / "measures.csv")
        read_csv(p.run.folder / "notes.csv", NOTE_COLUMNS)
        if p.run.seed == report.SEED_DRAWN:
            read_arrays(p.run.folder / "arrays.npz")
    except DamagedTableError as error:
        print(f"warning: {error.damage}; the run is measured again", file=sys.stderr, flush=True)
        return False
    return True


def _speed(study: Study, done: list[PlannedRun]) -> pd.DataFrame:
    """Return latency and memory of the study's architectures, measured in turn, again only if something differs."""
    first: dict[str, PlannedRun] = {}
    for p in done:
        first.setdefault(p.variant.name, p)
    contexts = {name: p.context() for name, p in first.items()}
    shapes = {name: [p.variant.model, asdict(p.variant.views), len(p.dataset.classes)] for name, p in first.items()}
    hardware = {name: [device_name(s.device), str(s.dtype)] for name, s in contexts.items()}
    key = config_hash({"version": VERSION, "shapes": shapes, "hardware": hardware})
    path = report.tables_folder(study.folder) / f"speed-{key}.csv"
    if not _is_timed(path):
        timed = measure_speed({name: p.fresh_model() for name, p in first.items()}, contexts)
        tables = [gather(items, study.name, name, None).table for name, items in timed.items()]
        save_table(path, pd.concat(tables, ignore_index=True))
    return read_table(path)


def _is_timed(path: Path) -> bool:
    """Tell if there is a whole table of times, undisturbed by other work; a damaged table is reported."""
    try:
        return path.is_file() and not disturbed(read_table(path))
    except DamagedTableError as error:
        print(f"warning: {error.damage}; times are measured again", file=sys.stderr, flush=True)
        return False
