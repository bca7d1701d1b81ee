"""Trains one cheap run of a study's record again, and compares it with the record."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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

PLATFORM, KERNELS = ("device", "precision", "torch"), "kernels"  # where all are equal, equal bits are expected
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
    of_variant = [r["test_accuracy"] for f, _, r in done if f.name.split("-seed")[0] == folder.name.split("-seed")[0]]
    is_contradicted, comparison = compare(fresh, result, of_variant)
    return ([f"{record}: {title}: {comparison}"], "") if is_contradicted else ([], f"{title}: {comparison}")


def compare(fresh: Mapping[str, Any], recorded: Mapping[str, Any], accuracies: Sequence[float]) -> tuple[bool, str]:
    """Return whether a run that was trained again contradicts its record, and the comparison in words.

    On the same platform with the same kernels equal bits are expected. Elsewhere an accuracy is expected that another
    seed would have.

    Args:
        fresh, recorded: results of the two trainings.
        accuracies: recorded test accuracies of all seeds of the variant.
    """
    changed = {key: value for key, value in _numbers(recorded).items() if fresh.get(key) != value}
    if not changed:
        return False, "the same bits"
    others = [key for key in (*PLATFORM, KERNELS) if fresh.get(key) != recorded.get(key)]
    if not others:
        key, value = next(iter(changed.items()))
        return True, f"{key} {fresh.get(key)}, recorded {value}, on the same platform"
    where = "with other kernels" if others == [KERNELS] else "on another platform"
    low, high = next_seed_interval(accuracies)
    accuracy = fresh["test_accuracy"]
    words = f"accuracy {accuracy:.4f}, another seed is expected in [{low:.4f}, {high:.4f}], {where}"
    return not low <= accuracy <= high, words


def next_seed_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the interval that one more seed falls into with 95%, by Student's t; without end with fewer than 3."""
    n = len(values)
    if n < 3:
        return -math.inf, math.inf
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * np.std(values, ddof=1) * math.sqrt(1 + 1 / n))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def _numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of training and evaluation, without times."""
    return {key: value for key, value in result.items() if key.endswith(("_loss", "_accuracy"))}
