"""Runs that are trained together: one that is held, and others that are free and equally far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from experiments.store.runs import Run


def steps_trained(run: Run) -> tuple[int, int]:
    """Return the whole epochs in the last checkpoint, and the steps of the epoch after them."""
    checkpoint = run.load_checkpoint() or {}
    return len(checkpoint.get("history", [])), (checkpoint.get("part") or {}).get("step", 0)


@contextmanager
def hold_lockstep_runs(lead: Run, others: Mapping[int, Run], most: int) -> Iterator[dict[int, Run]]:
    """Hold further runs, each by a lease of its own; runs that other processes hold are passed over.

    Args:
        lead: run that is held already.
        others: runs that may be trained with it, by index.
        most: upper bound of the runs trained together, the lead included.

    Yields:
        The further runs that are held, by index.
    """
    held_runs: dict[int, Run] = {}
    with ExitStack() as held:
        reached = steps_trained(lead) if most > 1 and others else None
        for k, run in others.items():
            if len(held_runs) + 1 >= most:
                break
            with ExitStack() as holding:
                lease = holding.enter_context(run.lock())
                if lease is not None and run.result is None and steps_trained(run) == reached:
                    held_runs[k] = replace(run, lease=lease)
                    held.push(holding.pop_all())
        yield held_runs
