"""State of a study: its runs that are done, running, failed or to do, read from the run store alone.

It writes no files, loads no data and does not wait for leases. So it can be read at any time, from any machine that
sees the folder.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from experiments.store import leases
from experiments.store.runs import Run
from experiments.study.config import Study, Variant, flat_keys

STATES = ("done", "running", "failed", "to do")


def study_status(study: Study) -> dict[str, Any]:
    """Return the state of every run of a study, in JSON types.

    Returns:
        ``study``, ``counts`` of the four states, ``runs`` (each with variant, seed, state and, as far as they are
        known, accuracy, epoch, epochs, seconds_left, by, since, silent_seconds, reason, folder), ``others``: how many
        runs of other configurations are in the folder, and ``others_running``: those of them that are in training, each
        as in ``runs`` and with ``overrides``, in what they differ from the study.
    """
    folders = {path: _read(path / "config.json") for path in sorted(study.folder.glob("*-seed*"))}
    matched, runs = set(), []
    for seed in range(study.seeds):
        for v in study.variants:
            candidates = [path for path, config in folders.items() if _is(config, v, seed)]
            matched.update(candidates)
            states = [run_status(Run(v.name, folders[path], path)) for path in candidates]
            # The same run on other images is another one; of these the furthest counts.
            best = min(states, key=lambda state: STATES.index(state["state"]), default={"state": "to do"})
            runs.append({"variant": v.name, "seed": seed, **best})
    for run in runs:
        if run["state"] == "running" and "seconds_left" not in run:
            took = [r["seconds"] for r in runs if r["variant"] == run["variant"] and r["state"] == "done"]
            if took:
                run["seconds_left"] = max(0.0, median(took) - run["running_seconds"])
    counts = Counter(run["state"] for run in runs)
    return {
        "study": study.name,
        "counts": {state: counts[state] for state in STATES},
        "runs": runs,
        "others": len(folders.keys() - matched),
        "others_running": _others_running(study, {p: c for p, c in folders.items() if p not in matched and c}),
    }


def _others_running(study: Study, folders: dict[Path, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the runs of other configurations that are in training, with the keys in which they differ."""
    states = []
    for path, config in folders.items():
        try:
            variant, seed = config["variant"], config["seed"]
            state = run_status(Run(variant, config, path))
        except (KeyError, TypeError):  # of another version
            continue
        if state["state"] == "running":
            like = next((v for v in study.variants if v.name == variant), study.variants[0])
            ours = flat_keys(json.loads(json.dumps(like.run_config(config.get("data", ""), seed))))
            theirs = flat_keys({key: value for key, value in config.items() if key != "variant"})
            changed = {key: value for key, value in theirs.items() if ours.get(key) != value}
            flags = {re.sub("^views", "data", key): value for key, value in changed.items()}
            states.append({"variant": variant, "seed": seed, "overrides": flags, **state})
    return states


def run_status(run: Run) -> dict[str, Any]:
    """Return the state of one run, in JSON types; the keys are those of ``study_status``."""
    result, holder = run.result, leases.holder(run.folder)
    status: dict[str, Any] = {"folder": run.folder.name, "epochs": run.config["recipe"]["epochs"]}
    if result is not None and result["status"] == "done":
        return {**status, "state": "done", "accuracy": result["test_accuracy"], "seconds": result["seconds"]}
    if result is not None:
        return {**status, "state": "failed", "reason": f"{result['status']}: {result['reason']}", "again": False}
    metrics = run.metrics()
    status["epoch"] = len(metrics)
    if holder is not None:
        status |= {"state": "running", "by": f"process {holder.pid} on {holder.host}", "since": holder.since}
        status["running_seconds"] = max(0.0, time.time() - datetime.fromisoformat(holder.since).timestamp())
        if metrics:
            each = median(epoch["seconds"] for epoch in metrics)
            waited = min(max(0.0, time.time() - (run.folder / "metrics.jsonl").stat().st_mtime), each)
            status["seconds_left"] = max(0.0, (status["epochs"] - len(metrics)) * each - waited)
        if holder.alive() is None:  # elsewhere: nobody here knows, and clocks may differ
            status["silent_seconds"] = max(0.0, time.time() - leases.last_heartbeat(run.folder))
        return status
    failure = run.failure
    if failure is not None:
        return {**status, "state": "failed", "reason": failure["reason"], "again": True}
    return {**status, "state": "to do"}


def _is(config: dict[str, Any], variant: Variant, seed: int) -> bool:
    """Tell if a folder's configuration is that of a variant and seed, on any images."""
    wanted = {"variant": variant.name, **variant.run_config(config.get("data", ""), seed)}
    return config == json.loads(json.dumps(wanted))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # begun this very moment, or no run
        return {}
    return content if isinstance(content, dict) else {}
