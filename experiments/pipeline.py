"""From a study to its results: train what is not trained yet, measure what is not measured yet, test, draw, report."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from experiments import data, report
from experiments.claims import study_verdicts
from experiments.data import Dataset
from experiments.errors import RunFailedError, UsageError
from experiments.measure import VERSION, measure_run
from experiments.measure.speed import measure_speed
from experiments.measure.table import Rows, save_arrays, save_table
from experiments.models import build_model
from experiments.store import leases
from experiments.store.company import company
from experiments.store.divide import outcomes
from experiments.store.leases import LeaseLostError
from experiments.store.runs import Run, config_hash, file_name, write_json
from experiments.study import Study, Variant
from experiments.tracking import Tracker, log_results
from experiments.training.abreast import refusal
from experiments.training.crew import ALONE, Crew
from experiments.training.run import train_at_once, train_run
from experiments.training.setting import Setting, choose_device, device_name
from experiments.training.trial import how_many
from gconv.cost import count_cost
from gconv.wiring import trace_wiring

PROVENANCE = ("commit", "date", "device", "python", "torch", "torchvision", "numpy", "data_hash")  # of a result


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study, with what it needs."""

    variant: Variant
    run: Run
    dataset: Dataset

    def fresh_model(self) -> nn.Module:
        """The untrained network, as the run's seed makes it."""
        torch.manual_seed(self.run.seed)
        return build_model(
            **self.variant.model, classes=len(self.dataset.classes), input_size=self.variant.views.crop_size
        )

    def trained_model(self) -> nn.Module:
        """The network as its training left it."""
        checkpoint = self.run.load_checkpoint()
        if checkpoint is None:
            folder = self.run.folder
            raise UsageError(
                f"{folder}: done, but checkpoint.pt is gone or damaged; remove the folder to train the run again"
            )
        model = self.fresh_model()
        model.load_state_dict(checkpoint["model"])
        return model

    def setting(self) -> Setting:
        """Images, views and recipe on their device."""
        return Setting.of(self.dataset, self.variant.views, self.variant.recipe)


def run_study(study: Study) -> int:
    """Train, measure, draw and report; returns how many runs failed."""
    return run_planned(study, plan(study))


def run_planned(study: Study, planned: list[PlannedRun], crew: Crew = ALONE) -> int:
    """``run_study`` of what is planned; a crew is let go before anything is measured."""
    with crew.at_work():
        failed = train_all(study, planned, crew)
    done = [p for p in planned if (p.run.result or {}).get("status") == "done"]
    missing = _missing(planned)
    if done:
        with leases.waiting(report.tables_folder(study.folder)):  # processes that divide a study draw it one by one
            print("measuring …", flush=True)
            measure_all(study, done)
            save_table(report.tables_folder(study.folder) / "missing.csv", missing)
            figures = report.draw_figures(study.folder)
            _log_results(study, done[0].run.result or {}, figures)
        print(f"\n{study.question}\n\n{report.summary(report.read_measures(study.folder))}\n")
        for _, row in missing.iterrows():
            print(f"Not in these tables: {row['variant']}, seed {row['seed']}: {row['status']}: {row['reason']}")
        if verdicts := study_verdicts(study.name, study.runs_root):
            print(f"Verdicts of this study alone (make claims prints the ledger)\n{verdicts}\n")
        print(f"tables:  {report.tables_folder(study.folder)}")
        print("figures: " + "\n         ".join(str(path) for path in figures if path.suffix == ".png"))
    return failed


def _log_results(study: Study, first: dict[str, Any], figures: list[Path]) -> None:
    """Tables and figures to wandb, with what the first run says of where they come from."""
    folder = report.tables_folder(study.folder)
    tables = [path for name in report.TABLES if (path := folder / f"{name}.csv").is_file()]
    about = {key: value for key, value in first.items() if key in PROVENANCE}
    about |= {"question": study.question, "overrides": _public(study.overrides)}
    log_results(study.wandb, study.name, study.folder, tables, figures, about)


def plan(study: Study) -> list[PlannedRun]:
    """Every variant with every seed, seed by seed, so that an interrupted study is balanced.

    Raises:
        UsageError: a dataset cannot be loaded, or an architecture cannot be built.
    """
    planned = runs_of(study)
    for p in planned[: len(study.variants)]:  # what cannot work is told before anything is trained
        choose_device(p.variant.recipe.device)
        size = p.variant.views.crop_size
        with torch.device("meta"):
            model = p.fresh_model()
        try:
            count_cost(model, (3, size, size))
            trace_wiring(model, (3, size, size))
        except ValueError as error:
            raise UsageError(f"variant {p.variant.name}, data.crop_size={size}: {error}") from None
        if study.seeds_at_once not in ("auto", 1) and (reason := refusal(model)):
            raise UsageError(
                f"seeds_at_once={study.seeds_at_once}, variant {p.variant.name}: its seeds cannot be trained together "
                f"as if alone, since {reason}; seeds_at_once=auto trains such a variant one seed at a time"
            )
    return planned


def runs_of(study: Study) -> list[PlannedRun]:
    """The runs that ``plan`` makes, with their datasets and otherwise unchecked; raises where one cannot be loaded."""
    datasets: dict[tuple[str, int], Dataset] = {}
    for v in study.variants:
        source = (v.dataset, v.views.image_size)
        if source not in datasets:
            datasets[source] = data.load(*source, study.data_root, study.download)
    planned = []
    for seed in range(study.seeds):
        for v in study.variants:
            dataset = datasets[v.dataset, v.views.image_size]
            run = Run.of(study.folder, v.name, v.run_config(dataset.key, seed))
            planned.append(PlannedRun(v, run, dataset))
    return planned


def train_all(study: Study, planned: list[PlannedRun], crew: Crew = ALONE) -> int:
    """Train what is not trained yet, alone or beside other processes on the study; returns how many runs failed."""

    def say(k: int, text: str) -> None:
        print(f"[{k + 1}/{len(planned)}] {planned[k].variant.name}, seed {planned[k].run.seed}: {text}", flush=True)

    if study.seeds_at_once not in ("auto", 1) and (crew.size > 1 or study.on == "ray"):
        reason = "processes that train each run together, and on=ray, train one seed at a time"
        raise UsageError(f"seeds_at_once={study.seeds_at_once}: {reason}; leave it at auto")
    over: set[int] = set()
    beside: dict[int, str] = {}  # with whom a run was trained here, in words

    def train(k: int, run: Run) -> dict[str, Any]:
        lead = replace(planned[k], run=run)
        others = {j: p.run for j, p in enumerate(planned) if j != k and p.variant == lead.variant}
        others = {} if crew.size > 1 else {j: other for j, other in others.items() if j not in over | beside.keys()}
        most = _at_once(study, lead, 1 + len(others), lambda text: say(k, text))
        with company(run, others, most) as held:
            if not held:
                return train_planned(study, lead, crew)
            group = {k: lead} | {j: replace(planned[j], run=other) for j, other in held.items()}
            ends = dict(zip(group, _train_together(study, list(group.values())), strict=True))
            for j, end in ends.items():
                seeds = [str(p.run.seed) for i, p in group.items() if i != j]
                beside[j] = f" (together with seed{'s' * (len(seeds) > 1)} {', '.join(seeds)})"
                if j != k and isinstance(end, LeaseLostError):
                    say(j, str(end))
                    del beside[j]
                elif j != k and isinstance(end, Exception):
                    held[j].fail(end, held[j].epochs_saved())
        if isinstance(end := ends[k], Exception):
            raise end
        return end

    runs = [p.run for p in planned]
    if study.on == "ray":
        from experiments.cluster.runs import outcomes_on_ray

        found = closing(outcomes_on_ray(study, runs, say))
    else:
        found = nullcontext(outcomes(runs, train, say))
    failed = 0
    with found as ended:
        for k, result, where in ended:
            over.add(k)
            where = beside.get(k, where)
            if result["status"] == "done":
                say(k, f"accuracy {result['test_accuracy']:.3f}, {result['seconds']:.0f} s{where}")
            else:
                failed += 1
                kept = f"checkpoint of epoch {result['epoch']} kept" if result["epoch"] else "no checkpoint yet"
                say(k, f"{result['status']}: {result['reason']}; {kept}{where}")
    return failed


def train_planned(study: Study, p: PlannedRun, crew: Crew = ALONE) -> dict[str, Any]:
    """Train one run to its end and record it; rank 0 of a crew does so with the others."""
    p.run.begin()
    setting, model, tracker = p.setting(), p.fresh_model(), _tracker(study, p)
    end: dict[str, Any] | Exception
    try:
        with crew.training(p.run.folder.name):
            end = train_run(p.run, model, setting, tracker, crew)
    except Exception as error:
        end = error
    each = f"{crew.size} ranks, each " if crew.size > 1 else ""
    return _record(p, setting, tracker, end, each + device_name(setting.device))


def _train_together(study: Study, group: list[PlannedRun]) -> list[dict[str, Any] | Exception]:
    """Train seeds of a variant side by side and record each; in place of a record, why there is none this time."""
    for p in group:
        p.run.begin()
    setting, trackers = group[0].setting(), [_tracker(study, p) for p in group]
    runs, fresh = [p.run for p in group], [p.fresh_model for p in group]
    ends: list[dict[str, Any] | Exception] = []
    for p, tracker, end in zip(group, trackers, train_at_once(runs, fresh, setting, trackers), strict=True):
        if isinstance(end, dict):
            end |= {"seeds_at_once": len(group)}
        try:
            record = _record(p, setting, tracker, end, device_name(setting.device))
        except Exception as error:
            record = error
        ends.append(record)
    return ends


def _at_once(study: Study, p: PlannedRun, most: int, say: Callable[[str], None]) -> int:
    """How many seeds of a variant to train at once; what ``auto`` means is tried once for each architecture."""
    if study.seeds_at_once != "auto":
        return min(study.seeds_at_once, most)
    if most == 1 or choose_device(p.variant.recipe.device).type != "cuda":
        return 1  # slower on a CPU, see ``trial``
    v = p.variant
    key = config_hash({"model": v.model, "views": asdict(v.views), "recipe": asdict(v.recipe), "most": most})
    if key not in _tried:
        _tried[key], faster = how_many(p.fresh_model, p.setting(), most)
        if _tried[key] > 1:
            say(f"{_tried[key]} seeds at once are {faster:.1f} times as fast as one after the other")
    return _tried[key]


_tried: dict[str, int] = {}


def _tracker(study: Study, p: PlannedRun) -> Tracker:
    name = f"{p.variant.name}-seed{p.run.seed}"
    return Tracker(study.wandb, "grouped-convolution", name, study.name, p.run.config, p.run.folder)


def _record(
    p: PlannedRun, setting: Setting, tracker: Tracker, end: dict[str, Any] | Exception, device: str
) -> dict[str, Any]:
    """Record how a training ended, done or diverged; raises what does not last, since the next start tries again."""
    values, status = end, "done"
    if isinstance(values, Exception):
        error, values, status = values, {"reason": str(values), "epoch": p.run.epochs_saved()}, "diverged"
        if not (isinstance(error, RunFailedError) and error.lasting):
            tracker.finish({"status": "failed", **values}, failed=True)
            raise error
    values |= {
        "dataset": p.variant.dataset,
        "broken_images": len(p.dataset.broken),
        "precision": str(setting.dtype).removeprefix("torch."),
    }
    result = p.run.finish(status, values, device)
    tracker.finish(_public(result), failed=status != "done")
    return result


def _missing(planned: list[PlannedRun]) -> pd.DataFrame:
    """The runs that ended without a result, and why: what no table can show."""
    rows = []
    for p in planned:
        result = p.run.result or p.run.failure
        if result is not None and result["status"] != "done":
            rows.append([p.variant.name, p.run.seed, result["status"], result["reason"]])
    return pd.DataFrame(rows, columns=["variant", "seed", "status", "reason"])


def measure_all(study: Study, done: list[PlannedRun]) -> None:
    """Measure every trained run once, and gather all of them in the study's tables, variant by variant."""
    order = [v.name for v in study.variants]
    done = sorted(done, key=lambda p: (order.index(p.variant.name), p.run.seed))
    key = {**asdict(study.measures), "version": VERSION}
    tables, notes = [], []
    for p in done:
        measured = p.run.folder / "measured.json"
        if not measured.is_file() or json.loads(measured.read_text()) != key:
            measured.unlink(missing_ok=True)
            rows = Rows(study.name, p.variant.name, p.run.seed)
            arrays = measure_run(rows, p.run, p.trained_model(), p.fresh_model(), p.setting(), study.measures)
            save_arrays(p.run.folder / "arrays.npz", arrays)
            save_table(p.run.folder / "notes.csv", rows.notes())
            save_table(p.run.folder / "measures.csv", rows.table())
            write_json(measured, key)
        tables.append(report.read_table(p.run.folder / "measures.csv"))
        notes.append(pd.read_csv(p.run.folder / "notes.csv", keep_default_na=False))
    folder = report.tables_folder(study.folder)
    tables.append(_speed(study, done))
    whole = pd.concat(tables, ignore_index=True)
    save_table(folder / "measures.csv", whole)
    for name, of_costs in report.tradeoff_tables(whole).items():
        save_table(folder / f"{name}.csv", of_costs)
    curves = [
        {"variant": p.variant.name, "seed": p.run.seed, "test_accuracy": np.nan, **epoch}
        for p in done
        for epoch in p.run.metrics()
    ]
    save_table(folder / "curves.csv", pd.DataFrame(curves))
    save_table(folder / "layers.csv", _layer_costs(done))
    save_table(folder / "notes.csv", pd.concat(notes, ignore_index=True))
    results = [{"variant": p.variant.name, **_public(p.run.result or {})} for p in done]
    save_table(folder / "runs.csv", pd.DataFrame(results))
    write_json(folder / "study.json", {"question": study.question, "overrides": _public(study.overrides)})
    for stale in folder.glob("*.npz"):
        stale.unlink()
    for p in done:
        if p.run.seed == report.SEED_DRAWN:
            with np.load(p.run.folder / "arrays.npz") as arrays:
                save_arrays(folder / f"{file_name(p.variant.name)}-seed{p.run.seed}.npz", dict(arrays))


def _layer_costs(done: list[PlannedRun]) -> pd.DataFrame:
    """Parameters, MACs and activations of every layer of every variant."""
    rows = []
    for p in {p.variant.name: p for p in done}.values():
        with torch.device("meta"):
            cost = count_cost(p.fresh_model(), (3, p.variant.views.crop_size, p.variant.views.crop_size))
        rows += [{"variant": p.variant.name, **asdict(layer)} for layer in cost.layers]
    return pd.DataFrame(rows)


def _public(values: dict[str, Any]) -> dict[str, Any]:
    """The same values without the places of this machine; the data's hash tells what lay there."""
    return {k: "folder:PATH" if k == "dataset" and str(v).startswith("folder:") else v for k, v in values.items()}


def _speed(study: Study, done: list[PlannedRun]) -> pd.DataFrame:
    """Latency and memory of the study's architectures, measured side by side; again only where something differs."""
    first: dict[str, PlannedRun] = {}
    for p in done:
        first.setdefault(p.variant.name, p)
    settings = {name: p.setting() for name, p in first.items()}
    shapes = {name: [p.variant.model, asdict(p.variant.views), len(p.dataset.classes)] for name, p in first.items()}
    hardware = {name: [device_name(s.device), str(s.dtype)] for name, s in settings.items()}
    key = config_hash({"version": VERSION, "shapes": shapes, "hardware": hardware})
    path = report.tables_folder(study.folder) / f"speed-{key}.csv"
    if not path.is_file():
        rows = {name: Rows(study.name, name, None) for name in first}
        measure_speed(rows, {name: p.fresh_model() for name, p in first.items()}, settings)
        save_table(path, pd.concat([r.table() for r in rows.values()], ignore_index=True))
    return report.read_table(path)
