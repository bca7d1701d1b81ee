"""Runs that are trained together: the lead's companions are those that are free and as far as it is at that moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from experiments.store.runs import Run


def how_far(run: Run) -> tuple[int, int]:
    """Whole epochs in the last checkpoint, and steps of the one after."""
    checkpoint = run.load_checkpoint() or {}
    return len(checkpoint.get("history", [])), (checkpoint.get("part") or {}).get("step", 0)


@contextmanager
def siblings(lead: Run, others: Mapping[int, Run], most: int) -> Iterator[dict[int, Run]]:
    """Hold runs beside one that is held, each by a lease of its own; those in other hands are passed over.

    Args:
        lead: the run that is held.
        others: those that may go with it, by index.
        most: how many may be trained at once, the lead among them.

    Yields:
        Those that do, by index.
    """
    found: dict[int, Run] = {}
    with ExitStack() as held:
        reached = how_far(lead) if most > 1 and others else None
        for k, run in others.items():
            if len(found) + 1 >= most:
                break
            with ExitStack() as holding:
                lease = holding.enter_context(run.lock())
                if lease is not None and run.result is None and how_far(run) == reached:
                    found[k] = replace(run, lease=lease)
                    held.push(holding.pop_all())
        yield found
