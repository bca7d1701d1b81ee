"""The ``status`` command: prints which runs of a study are done, running, failed or to do."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from experiments.commands.kinds import kind_of
from experiments.errors import UsageError
from experiments.store import leases
from experiments.study.catalogue import study_names, trained_studies
from experiments.study.status import STATES
from experiments.terminal import duration


def main(arguments: list[str]) -> int:
    """Print the state of one study, or of all; returns the exit code. Raises as ``print_status``."""
    print_status(arguments)
    return 0


def print_status(arguments: list[str]) -> None:
    """Print the state of one study, or of all of them.

    Args:
        arguments: the name of a study, or none for all; ``--json``; the flags of ``run``, which select the runs.

    Raises:
        UsageError: no such study, or wrong flags.
    """
    as_json = "--json" in arguments
    rest = [a for a in arguments if a != "--json"]
    if rest and not rest[0].startswith("-"):
        statuses = [status_of(rest[0], rest[1:])]
    else:
        statuses, errors = [], []
        for name in study_names() if not [a for a in rest if not a.startswith("--runs_root=")] else trained_studies():
            try:
                statuses.append(status_of(name, rest))
            except UsageError as error:  # one study that cannot be read hides no other
                errors.append(error)
        if not statuses:
            raise errors[0]
        for error in errors:
            print(f"warning: {error}", file=sys.stderr)
    if as_json:
        print(json.dumps(statuses, indent=1))
        return
    for status in statuses:
        print("\n".join(lines(status, whole=bool(rest) and not rest[0].startswith("-"))), flush=True)


def status_of(name: str, flags: list[str]) -> dict[str, Any]:
    """Return the state of a study, given by name or file and with the flags of ``run``; see ``study_status``."""
    return kind_of(name).status(name, flags)


def runs_done(runs_root: Path) -> dict[str, int]:
    """Return the number of finished runs of every study that has a folder, by name; the study is that of its file."""
    begun = [name for name in study_names() if (runs_root / name).is_dir()]
    return {name: status_of(name, [f"--runs_root={runs_root}"])["counts"]["done"] for name in begun}


def lines(status: dict[str, Any], whole: bool) -> list[str]:
    """Return a status as lines of text: counts, then all runs if ``whole``, else the running and failed ones."""
    counts = ", ".join(f"{number} {state}" for state, number in status["counts"].items())
    others = f"; {status['others']} of other configurations in the folder" if status["others"] else ""
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
        begun, whole = run.get("epoch", 0), run.get("epoch", 0) >= run.get("epochs", 1)
        return "trained, not tested" if whole else f"from epoch {begun + 1} of {run['epochs']}" if begun else ""
    since = datetime.fromisoformat(run["since"]).astimezone()
    today = since.date() == datetime.now().astimezone().date()
    left = f"about {duration(run['seconds_left'])} left" if "seconds_left" in run else "time left not known yet"
    text = f"epoch {min(run['epoch'] + 1, run['epochs'])} of {run['epochs']}, {left}; "
    text += f"by {run['by']} since {since:{'%H:%M' if today else '%Y-%m-%d %H:%M'}}"
    if run.get("silent_seconds", 0) > leases.EXPIRY_S:
        text += f"; no sign of life for {duration(run['silent_seconds'])}: perhaps dead, the next start finds out"
    return text
