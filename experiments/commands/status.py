"""The ``status`` command: what of a study is done, running, failed or to do, read from the run store alone.

It writes nothing, loads no data and waits for nobody, so that it can be asked at any time, from any machine that sees
the folder.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from experiments.errors import UsageError
from experiments.store import leases
from experiments.store.runs import Run
from experiments.study.catalogue import GROUP_PARALLEL, study_names, trained_studies
from experiments.study.config import Study, Variant, flat_keys, load_study, load_study_file

STATES = ("done", "running", "failed", "to do")


def print_status(arguments: list[str]) -> None:
    """Print where one study stands, or all of them.

    Args:
        arguments: the name of a study, or none for all; ``--json``; the flags of ``run``, which say what is wanted.

    Raises:
        UsageError: no such study, or wrong flags.
    """
    as_json = "--json" in arguments
    rest = [a for a in arguments if a != "--json"]
    if rest and not rest[0].startswith("-"):
        found = [status_of(rest[0], rest[1:])]
    else:
        found, errors = [], []
        for name in study_names() if not [a for a in rest if not a.startswith("--runs_root=")] else trained_studies():
            try:
                found.append(status_of(name, rest))
            except UsageError as error:  # one study that cannot be read hides no other
                errors.append(error)
        if not found:
            raise errors[0]
        for error in errors:
            print(f"warning: {error}", file=sys.stderr)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for status in found:
        print("\n".join(lines(status, whole=bool(rest) and not rest[0].startswith("-"))), flush=True)


def status_of(name: str, flags: list[str]) -> dict[str, Any]:
    """Where the study of a name or a file stands, as the flags of ``run`` have it; see ``study_status``."""
    if name == GROUP_PARALLEL:
        from experiments.group_parallel.study import study_status as of_group_parallel

        return of_group_parallel(flags)
    if name.endswith((".yaml", ".yml")):
        return study_status(load_study_file(Path(name), flags))
    return study_status(load_study(name, flags))


def runs_done(runs_root: Path) -> dict[str, int]:
    """Finished runs of every study that has a folder, as its file has it."""
    begun = [name for name in study_names() if (runs_root / name).is_dir()]
    return {name: status_of(name, [f"--runs_root={runs_root}"])["counts"]["done"] for name in begun}


def study_status(study: Study) -> dict[str, Any]:
    """Where every run of a study stands, in JSON types.

    Returns:
        ``study``, ``counts`` of the four states, ``runs`` (each with variant, seed, state and, as far as they are
        known, accuracy, epoch, epochs, seconds_left, by, since, silent_seconds, reason, folder), ``others``: how many
        runs of other configurations lie beside them, and ``others_running``: those of them that are in training, each
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
    """Runs of other configurations that are in training, with the keys in which they differ."""
    found = []
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
            found.append({"variant": variant, "seed": seed, "overrides": flags, **state})
    return found


def run_status(run: Run) -> dict[str, Any]:
    """Where one run stands, in JSON types; the keys are those of ``study_status``."""
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
            status["silent_seconds"] = max(0.0, time.time() - leases.last_sign(run.folder))
        return status
    failure = run.failure
    if failure is not None:
        return {**status, "state": "failed", "reason": failure["reason"], "again": True}
    return {**status, "state": "to do"}


def lines(status: dict[str, Any], whole: bool) -> list[str]:
    """A status as text: counts, then every run if ``whole``, else those that run or failed."""
    counts = ", ".join(f"{number} {state}" for state, number in status["counts"].items())
    others = f"; {status['others']} of other configurations beside them" if status["others"] else ""
    text = [f"{status['study']}: {len(status['runs'])} runs: {counts}{others}"]
    for state in STATES:
        for run in status["runs"]:
            if run["state"] == state and (whole or state in ("running", "failed")):
                name = f"{run['variant']}, seed {run['seed']}"
                text.append(f"  {state:<9}{name:<34} {_detail(run)}".rstrip())
    for run in status["others_running"]:
        flags = " ".join(f"--{key}={value}" for key, value in run["overrides"].items())
        name = f"{run['variant']}, seed {run['seed']}"
        text.append(f"  running  {name:<34} {_detail(run)}; with {flags or 'more seeds'}")
    return text


def _detail(run: dict[str, Any]) -> str:
    if run["state"] == "done":
        return f"accuracy {run['accuracy']:.3f}, {duration(run['seconds'])}" if "accuracy" in run else "measured"
    if run["state"] == "failed":
        return run["reason"] + ("; the next start tries it again" if run["again"] else "")
    if run["state"] == "to do":
        return f"from epoch {run['epoch'] + 1} of {run['epochs']}" if run.get("epoch") else ""
    since = datetime.fromisoformat(run["since"]).astimezone()
    today = since.date() == datetime.now().astimezone().date()
    left = f"about {duration(run['seconds_left'])} left" if "seconds_left" in run else "time left not known yet"
    text = f"epoch {min(run['epoch'] + 1, run['epochs'])} of {run['epochs']}, {left}; "
    text += f"by {run['by']} since {since:{'%H:%M' if today else '%Y-%m-%d %H:%M'}}"
    if run.get("silent_seconds", 0) > leases.EXPIRY:
        text += f"; no sign of life for {duration(run['silent_seconds'])}: perhaps dead, the next start finds out"
    return text


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _is(config: dict[str, Any], variant: Variant, seed: int) -> bool:
    """Whether a folder's configuration is that of a variant and seed, on whatever images."""
    wanted = {"variant": variant.name, **variant.run_config(config.get("data", ""), seed)}
    return config == json.loads(json.dumps(wanted))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # begun this very moment, or no run
        return {}
    return content if isinstance(content, dict) else {}
