"""A sweep on this machine: wandb's own engine suggests and stops, worker processes train.

What has been suggested is in ``points.json``, written whole at every change, so that a sweep that was interrupted
goes on: points that had not ended are trained first, from their last checkpoint. The k-th suggestion is drawn with the
seed k, so that a grid and a random search come out the same however often they are interrupted; what bayes suggests
depends on what has ended by then.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import random
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np

from experiments.errors import UsageError
from experiments.store.runs import write_json
from experiments.sweep.file import SweepFile, import_engine
from experiments.sweep.worker import SweepContext, work

POINTS = "points.json"
MAX_FIRST_FAILURES = 5  # after as many, and no run that did not fail, the sweep ends
STOP_TIMEOUT_S = 10  # for a worker that is stopped to save its step
# Of our states, how the engine calls them: a run that was stopped counts as metric.impute says.
STATES = {"running": "running", "done": "finished", "stopped": "killed", "diverged": "failed", "failed": "crashed"}

# Begins a worker, given the place, its log and how many there are; returns it and a link to it.
StartWorker = Callable[[SweepContext, Path, int], tuple[Any, Any]]


@dataclass
class Point:
    """One point of a sweep.

    Attributes:
        number: in the order of suggestion, from 0.
        values: values of the parameters, by name.
        state: running, done, stopped, diverged or failed.
        run: folder of its run.
        history: the epochs behind it.
        seconds: spent in training.
        reason: why it did not end by itself.
    """

    number: int
    values: dict[str, Any]
    state: str = "running"
    run: str = ""
    history: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    reason: str = ""

    def note(self, metrics: dict[str, float]) -> None:
        """Add an epoch, or take it anew where a resumed run has trained it again."""
        self.history = [epoch for epoch in self.history if epoch["epoch"] < metrics["epoch"]] + [metrics]

    def metric(self, name: str) -> float | None:
        """Return the last value of a metric that is a number, or None."""
        values = [epoch[name] for epoch in self.history if math.isfinite(epoch.get(name, math.nan))]
        return values[-1] if values else None


@dataclass
class Worker:
    """A worker process, the connection to it, and what it trains."""

    process: Any
    link: Any
    point: Point | None = None


def read_points(folder: Path) -> list[Point]:
    """Return the points of a sweep so far."""
    path = folder / POINTS
    return [Point(**point) for point in json.loads(path.read_text(encoding="utf-8"))] if path.is_file() else []


def suggest(sweep: SweepFile, points: list[Point]) -> dict[str, Any] | None:
    """Return the values for the next point, or None where a grid is exhausted.

    Raises:
        UsageError: the engine cannot make sense of the file.
    """
    random.seed(len(points))
    np.random.seed(len(points))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a Gaussian process of few points warns of its own uncertainty
            suggestion = import_engine().next_run(sweep.content, [_to_engine(sweep, point) for point in points])
    except ValueError as error:
        raise UsageError(f"{sweep.place}: {' '.join(str(error).split())}") from None
    return None if suggestion is None else {name: plain(entry["value"]) for name, entry in suggestion.config.items()}


def plain(value: Any) -> Any:
    """Return the same value without numpy's types, which neither JSON nor a command line reads."""
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(entry) for entry in value]
    return value.item() if isinstance(value, np.generic) else value


def to_stop(sweep: SweepFile, points: list[Point]) -> set[int]:
    """Return the numbers of the running points that early termination ends now."""
    if "early_terminate" not in sweep.content:
        return set()
    stopped = import_engine().stop_runs(sweep.content, [_to_engine(sweep, point) for point in points])
    return {int(run.name) for run in stopped}


def _to_engine(sweep: SweepFile, point: Point) -> Any:
    last = point.metric(sweep.metric)
    return import_engine().SweepRun(
        name=str(point.number),
        state=STATES[point.state],
        config={name: {"value": value} for name, value in point.values.items()},
        sampledHistory=[{sweep.metric: epoch[sweep.metric]} for epoch in point.history if sweep.metric in epoch],
        summaryMetrics={} if last is None else {sweep.metric: last},
    )


class LocalSweep:
    """Leads the workers of one sweep; only this process writes ``points.json``."""

    def __init__(
        self,
        sweep: SweepFile,
        place: SweepContext,
        flags: list[str],
        runs: int | None,
        workers: int,
        begin: StartWorker | None = None,
    ) -> None:
        """Read what was done before.

        Args:
            sweep: the file.
            place: where runs come from and go to.
            flags: flags of the command line, for every run.
            runs: greatest number of points; None for all of a grid.
            workers: number of points trained at a time.
            begin: begins a worker; by default it is a process of this machine.
        """
        self.sweep, self.place, self.flags, self.runs = sweep, place, flags, runs
        self.folder = place.root / place.sweep
        self.points = read_points(self.folder)
        self._again = [p for p in self.points if p.state in ("running", "failed")]
        self._exhausted = False
        self._wanted = workers
        self._begin = begin or begin_process
        self._workers: list[Worker] = []

    def run(self) -> None:
        """Train until there is nothing more to suggest; interrupted, it goes on the next time."""
        try:
            while True:
                self._hand_out()
                busy = [worker for worker in self._workers if worker.point is not None]
                if not busy:
                    return
                heard = connection.wait([worker.link for worker in busy])
                for worker in busy:
                    if worker.link in heard:
                        self._listen(worker)
        finally:
            self._end_workers()

    def _hand_out(self) -> None:
        """Give every idle worker a point, while there are points."""
        while len(busy := [w for w in self._workers if w.point is not None]) < self._wanted:
            point = self._next()
            if point is None:
                return
            idle = next((w for w in self._workers if w not in busy), None)
            worker = idle or self._new_worker()
            point.state, point.reason, worker.point = "running", "", point
            self._save()
            try:
                worker.link.send(self.sweep.of_one_run(point.values, self.flags))
            except OSError:
                if idle is None:
                    self._lose(worker, point)
                else:  # it died between two points: another worker trains this one
                    self._workers.remove(worker)
                    self._again.insert(0, point)

    def _next(self) -> Point | None:
        if self._again:
            return self._again.pop(0)
        enough = self.runs is not None and len(self.points) >= self.runs
        if self._exhausted or enough or self._target_met() or self._all_failed():
            return None
        values = suggest(self.sweep, self.points)
        if values is None:
            self._exhausted = True
            return None
        self.points.append(Point(len(self.points), values))
        return self.points[-1]

    def _target_met(self) -> bool:
        """Tell if a run has reached ``metric.target``, at which a sweep ends."""
        target = self.sweep.content["metric"].get("target")
        values = [point.metric(self.sweep.metric) for point in self.points if point.state == "done"]
        return target is not None and any(
            value is not None and (value >= target if self.sweep.maximize else value <= target) for value in values
        )

    def _all_failed(self) -> bool:
        """Tell if all of the first runs failed."""
        ended = [point for point in self.points if point.state != "running"]
        return len(ended) >= MAX_FIRST_FAILURES and all(point.state == "failed" for point in ended)

    def _listen(self, worker: Worker) -> None:
        point = worker.point
        if point is None:
            return
        try:
            word, content = worker.link.recv()
        except (EOFError, OSError):
            self._lose(worker, point)
            return
        if word == "began":
            point.run, point.history = content
        elif word == "epoch":
            point.note(content)
            is_stopped = point.number in to_stop(self.sweep, self.points)
            try:
                worker.link.send(is_stopped)
            except OSError:
                self._lose(worker, point)
        else:
            worker.point = None
            record, point.history = content
            self._end(point, record["status"], record.get("reason", ""))

    def _lose(self, worker: Worker, point: Point) -> None:
        """Record that a worker died, and its point with it."""
        worker.process.join()
        self._workers.remove(worker)
        self._end(point, "failed", f"its process ended with {worker.process.exitcode}")

    def _end(self, point: Point, state: str, reason: str) -> None:
        point.state, point.reason = state, reason
        point.seconds = sum(epoch.get("seconds", 0.0) for epoch in point.history)
        self._save()
        total = f"/{self.runs}" if self.runs else ""
        settings = " ".join(f"{name}={format_value(value)}" for name, value in point.values.items())
        reached = point.metric(self.sweep.metric)
        result = "" if reached is None else f"{self.sweep.metric} {reached:.4f}, {point.seconds:.0f} s"
        text = ", ".join(part for part in (reason, result) if part)
        print(f"[{point.number + 1}{total}] {settings}: {text if state in ('done', 'stopped') else f'{state}: {text}'}")
        sys.stdout.flush()

    def _save(self) -> None:
        write_json(self.folder / POINTS, [asdict(point) for point in self.points])

    def _new_worker(self) -> Worker:
        log = self.folder / f"worker-{len(self._workers)}.log"
        self._workers.append(Worker(*self._begin(self.place, log, self._wanted)))
        return self._workers[-1]

    def _end_workers(self) -> None:
        for worker in self._workers:
            if worker.point is None:
                worker.link.close()  # it waits for work, and ends
            else:
                worker.process.terminate()
        for worker in self._workers:
            worker.process.join(STOP_TIMEOUT_S)
            if worker.process.is_alive():
                worker.process.kill()


def begin_process(place: SweepContext, log: Path, share: int) -> tuple[Any, Any]:
    """Start a worker process on this machine; returns it and a connection to it."""
    context = multiprocessing.get_context("spawn")
    link, theirs = context.Pipe()
    process = context.Process(target=work, args=(theirs, place, log, share), daemon=True)
    process.start()
    theirs.close()
    return process, link


def format_value(value: Any) -> str:
    """Return a value for display: four digits of a number."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
