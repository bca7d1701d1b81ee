"""A study's runs on a cluster: each is one call, made again elsewhere when its node is lost.

The leases of the run store decide who trains a run, here as everywhere: a call that finds its run in other hands leaves
it to them, and a run whose node was lost is called again once its lease is free. So none is trained twice, even where
Ray is wrong about a node, and processes without Ray can take part.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import lru_cache
from time import sleep
from typing import Any

from experiments.errors import RunFailedError, UsageError
from experiments.execution.cluster import Call, CallLostError, connected
from experiments.execution.planned_run import train_planned
from experiments.store import leases
from experiments.store.runs import Run
from experiments.store.work_sharing import POLL_INTERVAL_S, Outcome, attempt
from experiments.study.config import Study
from experiments.study.plan import PlannedRun, refuse_mixed_precision, runs_of

MAX_LOSSES = 5  # of one run, after which it counts as failed: the run itself may kill its processes


def outcomes_on_ray(
    study: Study, runs: Sequence[Run], say: Callable[[int, str], None]
) -> Generator[Outcome, None, None]:
    """Bring every run of a study to an end on a cluster; closed early, it stops the calls, and they save.

    Args:
        study: whose runs they are; its ``cpus_per_run`` are set aside for each, or a GPU.
        runs: in the order in which to train them.
        say: prints a line on the run of an index.

    Yields:
        The index of a run as it ends, its record, and where it was trained.

    Raises:
        UsageError: no cluster, or a node that cannot take part.
        OSError: the disk is full.
    """
    left = dict(enumerate(runs))
    before = {k: run.failure for k, run in left.items() if run.result is None}
    losses: Counter[int] = Counter()
    where, reported = " (done before)", set()
    sent = pickle.dumps(study)
    devices = {v.recipe.device for v in study.variants} - {"cpu"}
    with connected(study.execution.runs_root, study.execution.cpus_per_run, max(devices, default="cpu")) as cluster:
        at_work: dict[Call, int] = {}
        try:
            while left:
                for k in sorted(left.keys() - at_work.values()):
                    run = runs[k]
                    result = run.result
                    if result is None and run.failure not in (None, before.get(k)):
                        result = run.failure
                    if result is not None:
                        del left[k]
                        yield k, result, where
                    elif _is_free(run):
                        at_work[cluster.call(train_one, sent, k, run.folder.name)] = k
                    elif k not in reported:
                        by = leases.holder(run.folder)
                        who = f" ({by.pid} on {by.host})" if by else ""
                        say(k, f"in training by another process{who}; waiting for it")
                        reported.add(k)
                where = " (by another process)"
                if not at_work:
                    sleep(POLL_INTERVAL_S if left else 0)
                    continue
                for ticket in cluster.wait_for_any(at_work, POLL_INTERVAL_S):
                    k = at_work.pop(ticket)
                    try:
                        (result, note), node = cluster.answer(ticket)
                    except CallLostError as error:
                        losses[k] += 1
                        if losses[k] <= MAX_LOSSES:
                            say(k, f"{error}; it goes on elsewhere")
                            reported.add(k)  # its lease is waited for without another line
                            continue
                        reason = RunFailedError(f"{error}, {losses[k]} times", lasting=False)
                        result, note, node = runs[k].fail(reason, runs[k].epochs_saved()), "", "unknown"
                    if result is not None:
                        del left[k]
                        yield k, result, note or f" (on node {node})"
        finally:
            cluster.stop_all(at_work)


def _is_free(run: Run) -> bool:
    """Tell if nobody holds a run. An expired lease is taken over and released, for a node to take."""
    if leases.holder(run.folder) is None:
        return True
    with run.lock() as lease:
        return lease is not None


def train_one(sent: bytes, k: int, folder: str) -> tuple[dict[str, Any] | None, str]:
    """Train, on a node, the k-th run of a study; returns its record and a note, or None while others hold it.

    Raises:
        UsageError: the images, or the precision, are others there.
    """
    study, planned = _study(sent)
    p = planned[k]
    if p.run.folder.name != folder:
        raise UsageError(
            f"dataset={p.variant.dataset}: other images on a node ({p.run.folder.name}) than here ({folder})"
        )
    refuse_mixed_precision(study, planned)

    def train(_k: int, run: Run) -> dict[str, Any]:
        return train_planned(study, replace(p, run=run))

    return attempt(k, p.run, train, lambda _k, text: print(text, flush=True))


@lru_cache(maxsize=1)
def _study(sent: bytes) -> tuple[Study, list[PlannedRun]]:
    """Return a study and its runs, once for all calls of a process."""
    study = pickle.loads(sent)
    return study, runs_of(study)
