"""Trains one cheap run of a study's record again, and compares it with the record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from experiments.errors import UsageError
from experiments.execution.planned_run import train_planned
from experiments.report.tables import read_about
from experiments.store.packed import NotGatheredError, read_done
from experiments.store.runs import config_hash
from experiments.study.config import load_study
from experiments.study.plan import NAMES, runs_of

PLATFORM = ("device", "precision", "torch")  # equal bits are expected where all of these are equal
CONFIDENCE = 0.95


def retrain(name: str, record: Path, runs: Path, scratch: Path, flags: Sequence[str]) -> tuple[list[str], str]:
    """Train the run of a study again that took the least time.

    Args:
        name: name of the study.
        record: its folder in ``results/``.
        runs: folder of its unpacked runs.
        scratch: folder to train in.
        flags: flags of ``run``, such as ``--dataset=folder:PATH``.

    Returns:
        A line on each difference, and a sentence on the run that was trained, or why none was.

    Raises:
        UsageError: a wrong flag, or a dataset that is not there where a flag names it.
    """
    done = []
    for folder in sorted(runs.glob("*-seed*")):
        try:
            done.append((folder, *read_done(folder)))
        except NotGatheredError:
            continue
    if not done:
        return [], "nothing retrained, since no runs are packed"
    folder, config, result = min(done, key=lambda run: run[2]["seconds"])
    given = read_about(record / "study.json", ["overrides"])["overrides"]
    given = {key: value for key, value in given.items() if key != "only" and value != "folder:PATH"}
    given |= {
        "seeds": config["seed"] + 1,
        "precision": NAMES[result["precision"]],
        "runs_root": scratch,
        "wandb": "off",
    }
    try:
        study = load_study(name, [*(f"--{key}={value}" for key, value in given.items()), *flags])
        planned = runs_of(study)
    except UsageError as error:
        if flags:
            raise
        return [], f"nothing retrained: {error}"
    same = next((p for p in planned if config_hash(p.run.config) == config_hash(config)), None)
    if same is None:
        return (
            [],
            f"nothing retrained: the images here have another hash than {config['data']}, or keys were overridden",
        )
    fresh = train_planned(study, same)
    title = f"{folder.name} retrained in {fresh.get('seconds', math.nan):.0f} s"
    if fresh["status"] != "done":
        return [f"{record}: {title}: {fresh['status']}: {fresh['reason']}"], ""
    if all(fresh.get(key) == result.get(key) for key in PLATFORM):
        for key, value in _numbers(result).items():
            if fresh.get(key) != value:
                return [f"{record}: {title}: {key} {fresh.get(key)}, recorded {value}, on the same platform"], ""
        return [], f"{title}: the same bits"
    of_variant = [r["test_accuracy"] for f, _, r in done if f.name.split("-seed")[0] == folder.name.split("-seed")[0]]
    low, high = next_seed_interval(of_variant)
    accuracy = fresh["test_accuracy"]
    comparison = f"accuracy {accuracy:.4f}, another seed is expected in [{low:.4f}, {high:.4f}], on another platform"
    return ([], f"{title}: {comparison}") if low <= accuracy <= high else ([f"{record}: {title}: {comparison}"], "")


def next_seed_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the interval that one more seed falls into with 95%, by Student's t; without end with fewer than 3."""
    n = len(values)
    if n < 3:
        return -math.inf, math.inf
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * np.std(values, ddof=1) * math.sqrt(1 + 1 / n))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def _numbers(result: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of training and evaluation, without times."""
    return {key: value for key, value in result.items() if key.endswith(("_loss", "_accuracy"))}
