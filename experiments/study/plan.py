"""The runs that a study asks for: checked before any of them is trained."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import nn

from experiments.data import datasets as data
from experiments.data.datasets import Dataset
from experiments.errors import UsageError
from experiments.models import build_model
from experiments.store.runs import Run, check_writable
from experiments.study.config import Study, Variant
from experiments.tracking import check_account
from experiments.training.recipe import Precision, Recipe
from experiments.training.run_context import RunContext, choose_device, choose_dtype
from experiments.training.wide_network import refusal
from gconv.cost import count_cost
from gconv.wiring import trace_wiring

NAMES: dict[str, Precision] = {"float32": "fp32", "bfloat16": "bf16"}


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study, with what it needs."""

    variant: Variant
    run: Run
    dataset: Dataset
    precision: Precision = "auto"  # what ``recipe.precision=auto`` means

    def fresh_model(self) -> nn.Module:
        """Return the untrained network, initialised by the run's seed."""
        torch.manual_seed(self.run.seed)
        return build_model(
            **self.variant.model, classes=len(self.dataset.classes), input_size=self.variant.views.crop_size
        )

    def trained_model(self) -> nn.Module:
        """Return the trained network.

        Raises:
            UsageError: its checkpoint is missing or damaged.
        """
        checkpoint = self.run.load_checkpoint()
        if checkpoint is None:
            folder = self.run.folder
            raise UsageError(
                f"{folder}: done, but checkpoint.pt is gone or damaged; remove the folder to train the run again"
            )
        model = self.fresh_model()
        model.load_state_dict(checkpoint["model"])
        return model

    def context(self) -> RunContext:
        """Return images, views and recipe on their device."""
        return RunContext.of(self.dataset, self.variant.views, self.recipe)

    @property
    def recipe(self) -> Recipe:
        """Recipe, with the precision that is used here."""
        asked = self.variant.recipe
        return replace(asked, precision=self.precision) if asked.precision == "auto" else asked


def plan(study: Study) -> list[PlannedRun]:
    """Return the runs of every variant and seed, seed by seed, so that an interrupted study is balanced.

    Raises:
        UsageError: a dataset cannot be loaded, or an architecture cannot be built.
    """
    check_writable(study.execution.runs_root, "runs_root")
    check_account(study.execution.wandb)
    planned = runs_of(study)
    refuse_mixed_precision(study, planned)
    for p in planned[: len(study.variants)]:  # errors are reported before anything is trained
        choose_device(p.variant.recipe.device)
        size = p.variant.views.crop_size
        try:
            with torch.device("meta"):
                model = p.fresh_model()
        except UsageError as error:
            keys = ", ".join(f"model.{key}={value}" for key, value in p.variant.model.items() if key != "name")
            raise UsageError(f"{study.name}, variant {p.variant.name}: {error} ({keys})") from None
        try:
            count_cost(model, (3, size, size))
            trace_wiring(model, (3, size, size))
        except ValueError as error:
            raise UsageError(f"variant {p.variant.name}, data.crop_size={size}: {error}") from None
        if (at_once := study.execution.seeds_at_once) not in ("auto", 1) and (reason := refusal(model)):
            raise UsageError(
                f"seeds_at_once={at_once}, variant {p.variant.name}: its seeds cannot be trained together "
                f"as if alone, since {reason}; seeds_at_once=auto trains such a variant one seed at a time"
            )
    return planned


def runs_of(study: Study) -> list[PlannedRun]:
    """Return the runs of a study with their datasets, otherwise unchecked; raises if a dataset cannot be loaded."""
    datasets: dict[tuple[str, int], Dataset] = {}
    for v in study.variants:
        source = (v.dataset, v.views.image_size)
        if source not in datasets:
            datasets[source] = data.load(*source, study.execution.data_root, study.execution.download)
    planned = []
    for seed in range(study.seeds):
        for v in study.variants:
            dataset = datasets[v.dataset, v.views.image_size]
            run = Run.of(study.folder, v.name, v.run_config(dataset.key, seed))
            planned.append(PlannedRun(v, run, dataset, study.execution.precision))
    return planned


def refuse_mixed_precision(study: Study, planned: list[PlannedRun]) -> None:
    """Refuse to train runs in another precision than the study's runs that are done: it acts like another seed.

    Raises:
        UsageError: says what to type instead.
    """
    results = [p.run.result for p in planned]
    done = Counter(result["precision"] for result in results if result and "precision" in result)
    left = [p for p, result in zip(planned, results, strict=True) if result is None]
    if not (done and left):
        return
    if len(done) > 1:
        counts = " and ".join(f"{count} in {NAMES.get(name, name)}" for name, count in done.items())
        raise UsageError(f"{study.folder}: runs were trained in different precision, {counts}: remove those of one")
    (before,) = done
    for p in left:
        dtype = choose_dtype(p.recipe.precision, choose_device(p.recipe.device))
        if (now := str(dtype).removeprefix("torch.")) != before:
            raise UsageError(
                f"{study.folder}: {done[before]} runs were trained in {NAMES.get(before, before)}, and "
                f"{p.variant.name} would be trained in {NAMES.get(now, now)} here; go on with "
                f"--precision={NAMES.get(before, before)}, or begin anew in another folder with --runs_root=DIR"
            )
