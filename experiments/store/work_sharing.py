"""Runs divided among processes: each trains runs that no other trains, and all wait for the end of all."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from time import sleep
from typing import Any

from experiments.store import leases
from experiments.store.leases import LeaseLostError
from experiments.store.runs import Run

POLL_INTERVAL_S = 1.0  # for runs that other processes hold
DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Outcome = tuple[int, dict[str, Any], str]


def outcomes(
    runs: Sequence[Run], train: Callable[[int, Run], dict[str, Any]], say: Callable[[int, str], None]
) -> Iterator[Outcome]:
    """Train every run, or wait until another process has trained it.

    A run that another process holds is skipped. When no other run is left, this process waits for it, and trains it
    if its holder dies. A run that fails, here or elsewhere, does not stop the others and is not tried twice.

    Args:
        runs: in the order of training.
        train: trains the run of an index, under the lease of the run given, and returns its record.
        say: prints a line on the run of an index.

    Yields:
        The index of a run that has ended, its record, and where it was trained if not here and now.

    Raises:
        OSError: the disk is full.
    """
    left = dict(enumerate(runs))
    before = {k: run.failure for k, run in left.items() if run.result is None}
    where, reported = " (done before)", set()
    while left:
        ended = False
        for k, run in list(left.items()):
            result, note = run.result, where
            if result is None and run.failure not in (None, before.get(k)):
                result = run.failure
            if result is None:
                result, note = attempt(k, run, train, say)
            if result is not None:
                del left[k]
                ended = True
                yield k, result, note
        where = " (by another process)"
        if left and not ended:
            for k in left.keys() - reported:
                by = leases.holder(left[k].folder)
                who = f" ({by.pid} on {by.host})" if by else ""
                say(k, f"in training by another process{who}; waiting for it")
                reported.add(k)
            sleep(POLL_INTERVAL_S)


def attempt(
    k: int, run: Run, train: Callable[[int, Run], dict[str, Any]], say: Callable[[int, str], None]
) -> tuple[dict[str, Any] | None, str]:
    """Train a run unless another process holds it; return its record, or None, and where it was trained."""
    try:
        with run.lock() as lease:
            if lease is None:
                return None, ""
            ended = run.result  # since the last look
            if ended is not None:
                return ended, " (by another process)"
            held = replace(run, lease=lease)
            try:
                return train(k, held), ""
            except LeaseLostError as error:
                say(k, str(error))
                return None, ""
            except Exception as error:
                if isinstance(error, OSError) and error.errno in DISK_FULL_ERRORS:
                    raise
                return held.fail(error, held.epochs_saved()), ""
    except OSError as error:
        if error.errno in DISK_FULL_ERRORS:
            raise
        return run.fail(error, 0), ""
