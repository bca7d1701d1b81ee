"""From a study to its results: train what is not trained yet, measure what is not measured yet, test, draw, report."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from experiments import data
from experiments.data import Dataset
from experiments.errors import RunFailed
from experiments.models import build_model
from experiments.runs import Run
from experiments.study import Study, Variant
from experiments.tracking import Tracker
from experiments.train import Setting, device_name, train_run


def planned_runs(study: Study) -> list[tuple[Variant, Run, Dataset]]:
    """Every variant with every seed, seed by seed, so that an interrupted study is balanced."""
    datasets = {
        (v.dataset, v.views.image_size): data.load(v.dataset, v.views.image_size, study.data_root, study.download)
        for v in study.variants
    }
    runs = []
    for seed in range(study.seeds):
        for variant in study.variants:
            dataset = datasets[variant.dataset, variant.views.image_size]
            run = Run.of(study.folder, variant.name, variant.run_config(dataset.key, seed))
            runs.append((variant, run, dataset))
    return runs


def fresh_model(variant: Variant, classes: int, seed: int) -> nn.Module:
    """The untrained network of a variant under a seed."""
    torch.manual_seed(seed)
    arguments = {**variant.model, "classes": classes}
    if variant.model["name"] == "alexnet":
        arguments["input_size"] = variant.views.crop_size
    return build_model(**arguments)


def train_study(study: Study) -> tuple[list[tuple[Variant, Run, Dataset]], int]:
    """Train what is not trained yet. Returns all planned runs and how many of them failed."""
    runs = planned_runs(study)
    for variant in study.variants:  # an architecture that cannot be built is an error before anything is trained
        fresh_model(variant, 2, 0)
    failed = 0
    for number, (variant, run, dataset) in enumerate(runs, 1):
        label = f"[{number}/{len(runs)}] {variant.name}, seed {run.seed}"
        result = run.result
        if result is None:
            with run.lock() as held:
                if not held:
                    print(f"{label}: in training by another process, left to it", flush=True)
                    continue
                result = run.result or _train(study, variant, run, dataset)
            print(f"{label}: {_describe(result)}", flush=True)
        else:
            print(f"{label}: {_describe(result)} (done before)", flush=True)
        failed += result["status"] != "done"
    return runs, failed


def _train(study: Study, variant: Variant, run: Run, dataset: Dataset) -> dict:
    setting = Setting.of(dataset, variant.views, variant.recipe)
    model = fresh_model(variant, len(dataset.classes), run.seed)
    run.begin()
    name = f"{variant.name}-seed{run.seed}"
    tracker = Tracker(study.wandb, "grouped-convolution", name, study.name, run.config, run.folder)
    device = device_name(setting.device)
    try:
        values = train_run(run, model, setting, tracker)
    except RunFailed as error:
        run.finish("diverged", {"reason": str(error)}, device)
        tracker.finish({"status": "diverged"}, failed=True)
    else:
        values |= {"precision": str(setting.dtype).removeprefix("torch."), "dataset": variant.dataset}
        values |= {"broken_images": len(dataset.broken)}
        run.finish("done", values, device)
        tracker.finish({"status": "done", **values})
    result = run.result
    assert result is not None
    return result


def _describe(result: dict) -> str:
    if result["status"] != "done":
        return f"{result['status']}: {result['reason']}; the last good checkpoint is kept"
    return f"accuracy {result['test_accuracy']:.3f}, {result['seconds']:.0f} s"
