"""A process that trains the runs of a sweep one after the other, so that torch is loaded once and not once a run.

It receives flags and sends messages, pairs of a word and its content:

    began   (folder, history)    the run and the epochs that it has behind it
    epoch   metrics              of one epoch; the answer True ends the run early
    ended   (record, history)    how it ended: done, stopped, diverged or failed
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from dataclasses import dataclass, replace
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from experiments.errors import UsageError


@dataclass(frozen=True)
class SweepContext:
    """The sweep and the study that a run belongs to, and the folder of its run store.

    Attributes:
        sweep: name of the sweep; its runs are in the folder of this name.
        study: whose runs they are.
        root: folder of the sweeps in the run store.
    """

    sweep: str
    study: str
    root: Path


class WorkerConnection(Protocol):
    """Connection to the process that leads the sweep."""

    def send(self, message: Any, /) -> None:
        """Send a message."""

    def recv(self) -> Any:
        """Return the next message."""


class StoppedEarly(BaseException):
    """The sweep ends the run early; like a KeyboardInterrupt, it is not handled as a failure."""


def plan_one(place: SweepContext, flags: list[str]) -> tuple[Any, Any]:
    """Return the study and the planned run that flags make.

    Raises:
        UsageError: they make none, or more than one.
    """
    from experiments.study.config import load_study
    from experiments.study.plan import plan

    study = load_study(place.study, flags)
    if study.execution.on != "here":
        raise UsageError(
            f"on={study.execution.on}: not for a single run of a sweep; it is a flag of the command `sweep`"
        )
    if study.execution.gpus > 1:
        raise UsageError(
            f"gpus={study.execution.gpus}: a run of a sweep has one process; --workers trains several runs"
        )
    study = replace(study, name=place.sweep, execution=replace(study.execution, runs_root=place.root))
    if len(study.variants) * study.seeds != 1:
        names = ", ".join(v.name for v in study.variants)
        raise UsageError(
            f"a run of a sweep is one run; these flags of {place.study} make {len(study.variants)} variants ({names}) "
            f"× {study.seeds} seeds: add --only=VARIANT and --seeds=1"
        )
    (planned,) = plan(study)
    return study, planned


def train_one(study: Any, planned: Any) -> dict[str, Any]:
    """Train a planned run to its end, or until a listener ends it; a run that ended before is not trained again.

    Returns:
        Its record: of how it ended, or of why it failed.
    """
    from experiments.execution.study_runs import train_all

    try:
        train_all(study, [planned])
    except StoppedEarly:
        return record_stop(planned)
    return planned.run.result or planned.run.failure or {"status": "failed", "reason": "its record cannot be written"}


def record_stop(planned: Any) -> dict[str, Any]:
    """Record that a run was ended early; returns the record."""
    from experiments.training.run_context import choose_device, device_name

    last = (planned.run.metrics() or [{"epoch": 0}])[-1]
    values = {**last, "reason": f"stopped early after epoch {last['epoch']:.0f}"}
    device = device_name(choose_device(planned.variant.recipe.device))
    return planned.run.finish("stopped", values, device)


def work(link: Connection, place: SweepContext, log: Path, share: int) -> None:
    """Train the runs whose flags come through a connection, until it is closed.

    Args:
        link: to the process that leads the sweep.
        place: sweep and study of the runs, and their folder.
        log: takes what is printed here.
        share: among how many processes the threads are divided.
    """
    _set_up_process(log)
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // share))
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            train_flags(link, place, link.recv())


def train_flags(link: WorkerConnection, place: SweepContext, flags: list[str]) -> None:
    """Train the run that flags make, and send messages on its progress."""
    from experiments.tracking import listening

    history = []
    try:
        study, planned = plan_one(place, flags)
        if study.execution.wandb == "auto":  # nobody is logged in; the run store has it all
            study = replace(study, execution=replace(study.execution, wandb="off"))
        link.send(("began", (planned.run.folder.name, planned.run.metrics())))
        with listening(lambda metrics: _report(link, metrics)):
            record = train_one(study, planned)
        history = planned.run.metrics()
    except Exception as error:  # one run's fault is not the sweep's end
        if isinstance(error, EOFError | ConnectionError):
            raise
        kind = "" if isinstance(error, UsageError) else f"{type(error).__name__}: "
        record = {"status": "failed", "reason": kind + " ".join(str(error).split())}
    link.send(("ended", (record, history)))


def _report(link: WorkerConnection, metrics: dict[str, float]) -> None:
    link.send(("epoch", metrics))
    if link.recv():
        raise StoppedEarly


def _set_up_process(log: Path) -> None:
    """Print into a file, leave Ctrl-C to the leading process and die with it."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from experiments.store.stop_signal import install_handlers

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    install_handlers()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    parent = parent_process()
    if parent is not None:

        def follow() -> None:
            connection.wait([parent.sentinel])
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()
