"""The ``sweep`` command: one wandb sweep file, by wandb's server and agents where somebody is logged in, else here.

Either way a run is ``python -m experiments run STUDY`` with the flags that a wandb agent passes, and the sweep ends
with a table, the best configuration and two figures under ``runs/sweeps/<name>/``.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments import tracking
from experiments.errors import UsageError
from experiments.store.leases import claim, holder
from experiments.store.runs import write_json
from experiments.study.config import Study, load_study
from experiments.study.execution import folder_path
from experiments.study.invocation import typed
from experiments.sweep import report as sweep_report
from experiments.sweep.engine import LocalSweep, Point, StartWorker, read_points, suggest
from experiments.sweep.file import SweepFile, from_agent, read_sweep, sweep_path
from experiments.sweep.worker import SweepContext, plan_one, record_stop, train_one

DEFAULT_RUNS = 12  # of a random or bayes search whose file has no run_cap
FLAGS = "--runs=N, --workers=N, --runs_root=DIR, --online, --local, --on=ray, and any key of the study"
# Keys of the file that make another sweep when they change.
IDENTITY_KEYS = ("command", "method", "metric", "parameters", "early_terminate")


def run_sweep(name: str, arguments: list[str]) -> int:
    """Run a sweep to its end and show it; returns how many of its runs failed.

    Raises:
        UsageError: no such sweep, or a file or flags that cannot work.
    """
    sweep = read_sweep(sweep_path(name))
    options, flags = _options(arguments)
    root = folder_path("--runs_root", options.get("runs_root", "runs"))
    place = SweepContext(sweep.name, sweep.study, root / "sweeps")
    runs = options.get("runs") or sweep.content.get("run_cap") or (None if sweep.method == "grid" else DEFAULT_RUNS)
    first = suggest(sweep, [])
    if first is None:
        raise UsageError(f"{sweep.place}: parameters: nothing to suggest")
    for flag in flags:
        if flag.removeprefix("--").partition("=")[0] in sweep.parameters:
            raise UsageError(f"sweep: {flag}: {sweep.place} searches this key; leave out the flag, or edit the file")
    _check_keys(sweep, first, flags)
    study, _ = plan_one(place, sweep.of_one_run(first, flags))
    if options.get("on") == "ray":
        points, sent = _lead_on_ray(sweep, place, flags, runs, options.get("workers"), study), "off"
    elif options.get("online") or (not options.get("local") and tracking.online(study.execution.wandb)):
        from experiments.sweep.online import lead_agents

        if flags:
            raise UsageError(
                f"{flags[0]}: agents pass what {sweep.place} says; write it into its command, or use --local"
            )
        points, sent = (
            lead_agents(sweep, place.root / place.sweep, options.get("runs"), options.get("workers", 1)),
            "online",
        )
    else:
        points, sent = _lead_locally(sweep, place, flags, runs, options.get("workers", 1)), "off"
    return _finish(sweep, place, flags, points, sent)


def run_for_agent(name: str, flags: list[str]) -> int:
    """Train the one run that a wandb agent asks for; returns how many failed.

    It is trained and reported, not measured and drawn: a sweep asks for one number. An agent that ends a run early
    sends SIGTERM, which is recorded and is no failure.

    Raises:
        UsageError: the flags make no run, or more than one.
    """
    flags = from_agent(flags)
    root = load_study(name, flags).execution.runs_root / "sweeps"
    # A folder for each of the agent's runs: two of the same configuration both report.
    within = f"{os.environ['WANDB_SWEEP_ID']}/{os.environ['WANDB_RUN_ID']}"
    study, planned = plan_one(SweepContext(within, name, root), flags)
    try:
        record = train_one(study, planned)
    except KeyboardInterrupt:
        record = record_stop(planned)
        print(record["reason"], flush=True)
    return int(record["status"] == "failed")


def _options(arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Split the arguments into the command's own flags and those of the study."""
    options: dict[str, Any] = {}
    flags = []
    for argument in arguments:
        key, _, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--"):
            raise UsageError(f"sweep: {argument} is no flag; there are: {FLAGS}")
        if key in ("runs", "workers"):
            if not value.isdecimal() or int(value) < 1:
                raise UsageError(f"sweep: --{key}={value}: must be a whole number, at least 1")
            options[key] = int(value)
        elif key == "runs_root" and value:
            options[key] = value
        elif argument in ("--online", "--local"):
            options[key] = True
        elif key == "on":
            if value not in ("here", "ray"):
                raise UsageError(f"sweep: --on={value}: must be here or ray")
            options[key] = value
        elif value:
            flags.append(argument)
        else:
            raise UsageError(f"sweep: unknown flag {argument}; there are: {FLAGS}")
    if options.get("online") and options.get("local"):
        raise UsageError("sweep: --online and --local: only one of them")
    if options.get("online") and options.get("on") == "ray":
        raise UsageError("sweep: --online and --on=ray: only one of them; wandb's agents train where they are started")
    return options, flags


def _check_keys(sweep: SweepFile, first: dict[str, Any], flags: list[str]) -> None:
    """Make sure that every parameter is a key of the study, and every value that is named one that it can have.

    Raises:
        UsageError: names the file and the parameter.
    """
    try:
        load_study(sweep.study, sweep.of_one_run({}, flags))
    except UsageError as error:
        raise UsageError(f"{sweep.place}: command: {error}") from None
    refused = _refusal(sweep, first, flags)
    if refused is not None:
        raise UsageError(f"{sweep.place}: parameters.{_to_blame(sweep, first, flags)}: {refused}")
    for name, parameter in sweep.parameters.items():
        tried = parameter.get("values") or [parameter[end] for end in ("value", "min", "max") if end in parameter]
        for value in tried:
            if refused := _refusal(sweep, {**first, name: value}, flags):
                raise UsageError(f"{sweep.place}: parameters.{name}: {refused}")


def _refusal(sweep: SweepFile, values: dict[str, Any], flags: list[str]) -> str | None:
    """Say why no run can have these values of the parameters; None if one can."""
    try:
        load_study(sweep.study, sweep.of_one_run(values, flags))
    except UsageError as error:
        return str(error).removeprefix("command line: ")
    return None


def _to_blame(sweep: SweepFile, values: dict[str, Any], flags: list[str]) -> str:
    """Name the parameter without which a run can have the others; else the first that cannot be set alone."""
    for name in values:
        if _refusal(sweep, {key: value for key, value in values.items() if key != name}, flags) is None:
            return name
    alone = (name for name, value in values.items() if _refusal(sweep, {name: value}, flags) is not None)
    return next(alone, next(iter(values)))


def _lead_on_ray(
    sweep: SweepFile, place: SweepContext, flags: list[str], runs: int | None, workers: int | None, study: Study
) -> list[Point]:
    """Lead it here and train on a cluster, as many points at a time as there is room for."""
    from experiments.execution.cluster import connected
    from experiments.sweep.points import worker_factory

    with connected(place.root, study.execution.cpus_per_run, study.variants[0].recipe.device) as cluster:
        there = replace(place, root=place.root.resolve())
        return _lead_locally(sweep, there, flags, runs, workers or cluster.room, worker_factory(cluster))


def _lead_locally(
    sweep: SweepFile,
    place: SweepContext,
    flags: list[str],
    runs: int | None,
    workers: int,
    begin: StartWorker | None = None,
) -> list[Point]:
    folder = place.root / place.sweep
    lease = claim(folder)
    if lease is None:
        by = holder(folder)
        who = f" by process {by.pid} on {by.host}" if by else ""
        raise UsageError(f"{folder}: the sweep is being run{who}; for more runs at a time use --workers=N there")
    try:
        _check_identity(sweep, flags, folder)
        before = len(read_points(folder))
        total = "all of the grid" if runs is None else f"{runs} points"
        gone_on = f", {before} begun before" if before else ""
        print(f"{sweep.name}: {sweep.method}, {total}{gone_on}; {workers} at a time; logs in {folder}", flush=True)
        local = LocalSweep(sweep, place, flags, runs, workers, begin)
        local.run()
        return local.points
    finally:
        lease.release()


def _check_identity(sweep: SweepFile, flags: list[str], folder: Path) -> None:
    """Refuse to go on with points that another file suggested."""
    ours = {"flags": flags, **{key: sweep.content.get(key) for key in IDENTITY_KEYS}}
    path = folder / "begun.json"
    if path.is_file():
        begun = json.loads(path.read_text(encoding="utf-8"))
        changed = [key for key in ours if ours[key] != begun.get(key)]
        if changed:
            now, then = (content.get(changed[0]) for content in (ours, begun))
            raise UsageError(
                f"{folder}: was begun with other {changed[0]} ({then}, now {now}); remove the folder, or name another "
                f"--runs_root"
            )
    write_json(path, ours)


def _finish(
    sweep: SweepFile, place: SweepContext, flags: list[str], points: list[Point], sent: tracking.WandbMode
) -> int:
    """Save tables, figures and the best configuration, print and send them; returns how many runs failed."""
    folder = place.root / place.sweep
    if not points:
        print("no point has been run")
        return 1
    sweep_report.save_tables(sweep, points, folder)
    drawn = sweep_report.draw_figures(folder)
    print(f"\n{sweep_report.summary(folder)}\n")
    print(f"table:   {sweep_report.tables_folder(folder) / 'sweep.csv'}")
    for path in drawn:
        if path.suffix == ".png":
            print(f"figure:  {path}")
    best = sweep_report.best_point(sweep, points)
    if best is None:
        print("best:    none, since no run came to its end")
    else:
        study, _ = plan_one(place, sweep.of_one_run(best.values, flags))
        seeds = load_study(sweep.study).seeds
        path = sweep_report.save_best(sweep, best, points, study, seeds, folder)
        print(f"best:    {path}; try it with other seeds: {typed('run', str(path))}")
    tables = [sweep_report.tables_folder(folder) / f"{table}.csv" for table in ("sweep", "importance")]
    about = {"sweep": sweep.content, **({} if best is None else {"best": best.values})}
    tracking.log_results(sent, sweep.name, folder, tables, drawn, about)
    return sum(point.state == "failed" for point in points)
