"""A sweep that wandb's server leads: the file goes to it as it is, agents on any number of machines ask it for runs."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments.errors import UsageError
from experiments.store.runs import write_json
from experiments.sweep.engine import Point
from experiments.sweep.file import SweepFile

CREATE_TIMEOUT_S = 60  # for the server to take a sweep
# How the server calls what became of a run, and how we do.
STATES = {"finished": "done", "killed": "stopped", "crashed": "failed", "failed": "failed", "running": "running"}


def lead_agents(sweep: SweepFile, folder: Path, runs: int | None, workers: int) -> list[Point]:
    """Make the sweep on the server, or join the one made before, and run agents here until it has no more runs.

    Args:
        sweep: the file.
        folder: folder of the sweep in the run store; it keeps the identity of the sweep on the server.
        runs: number of runs of the agents on this machine; None for as many as the server hands out.
        workers: number of agents.

    Returns:
        The points of all machines, as the server knows them.

    Raises:
        UsageError: the server does not take the sweep.
    """
    identity = hashlib.sha256(sweep.path.read_bytes()).hexdigest()
    record = folder / "online.json"
    known = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    if known.get("file") != identity:
        known = {"file": identity, "sweep": _create(sweep)}
        write_json(record, known)
    print(f"{sweep.name}: sweep {known['sweep']}; on every further machine, in a copy of this project:", flush=True)
    print(f"  .venv/bin/wandb agent {known['sweep']}", flush=True)
    _run_agents(known["sweep"], runs, workers)
    return _points(sweep, known["sweep"])


def _wandb(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "wandb", *arguments]


def _environment() -> dict[str, str]:
    """Return the environment in which the agents' ``python`` is this one."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}


def _create(sweep: SweepFile) -> str:
    """Have the server make the sweep; returns its path, ``entity/project/id``."""
    hint = "; --local runs the same file on this machine"
    try:
        done = subprocess.run(
            _wandb("sweep", str(sweep.path)),
            env=_environment(),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=CREATE_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise UsageError(f"wandb's server did not take the sweep within {CREATE_TIMEOUT_S} s{hint}") from None
    output = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    made = re.search(r"wandb agent (\S+)", output)
    if made is None:
        lines = [line.removeprefix("wandb: ").strip() for line in output.strip().splitlines()]
        raise UsageError(f"wandb sweep {sweep.path}: {lines[-1] if lines else 'no answer'}{hint}")
    return made[1].strip("'")


def _run_agents(path: str, runs: int | None, workers: int) -> None:
    count = [] if runs is None else ["--count", str(math.ceil(runs / workers))]
    agents = [subprocess.Popen(_wandb("agent", *count, path), env=_environment()) for _ in range(workers)]
    try:
        codes = [agent.wait() for agent in agents]
    finally:
        for agent in agents:
            if agent.poll() is None:
                agent.terminate()
        for agent in agents:
            agent.wait()
    if any(codes):
        print(f"warning: {sum(map(bool, codes))} of {workers} wandb agents ended in an error", file=sys.stderr)


def _points(sweep: SweepFile, path: str) -> list[Point]:
    """Return all runs of the sweep, in the order in which they were made."""
    import wandb

    project, _, sweep_id = path.rpartition("/")
    try:
        online_runs = wandb.Api(timeout=CREATE_TIMEOUT_S).runs(
            project, {"sweep": sweep_id}, order="+created_at", lazy=False
        )
        runs = [run for run in online_runs]  # noqa: C416 (list() would ask for its length, and swallow what that raises)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"the results of {path} cannot be read ({reason}); start again later") from None
    return [_point(sweep, number, run) for number, run in enumerate(runs)]


def _point(sweep: SweepFile, number: int, run: Any) -> Point:
    config, summary = dict(run.config), dict(run.summary)
    state = summary.get("status") or STATES.get(run.state, "failed")
    reached = {key: summary[key] for key in ("epoch", sweep.metric, "seconds") if key in summary}
    return Point(
        number,
        {name: config.get(name) for name in sweep.parameters},
        state if state in STATES.values() or state == "diverged" else "failed",
        run.id,
        [{"epoch": number + 1, **reached}] if reached else [],
        float(summary.get("seconds", 0.0)),
        str(summary.get("reason", "")),
    )
