"""Training of one planned run, or of several seeds of a variant together, and the record of how it ended."""

from __future__ import annotations

from typing import Any

from experiments.errors import RunFailedError
from experiments.store.runs import public
from experiments.study.config import Study
from experiments.study.plan import PlannedRun
from experiments.tracking import Tracker
from experiments.training.process_group import SINGLE_PROCESS, ProcessGroup
from experiments.training.progress_lines import ProgressLines
from experiments.training.run import train_run, train_seeds
from experiments.training.run_context import RunContext, device_name


def train_planned(
    study: Study,
    p: PlannedRun,
    process_group: ProcessGroup = SINGLE_PROCESS,
    lines: ProgressLines | None = None,
) -> dict[str, Any]:
    """Train one run to its end and return its record.

    Args:
        study: which the run belongs to.
        p: the run, which this process holds.
        process_group: processes that train it together; this one is rank 0.
        lines: print how far the run is.
    """
    p.run.begin()
    context = p.context().with_compiler(study.execution.compile if process_group.size == 1 else "never")
    model, tracker = p.fresh_model(), _tracker(study, p)
    end: dict[str, Any] | Exception
    try:
        with process_group.training(p.run.folder.name):
            end = train_run(p.run, model, context, tracker, process_group, lines)
    except Exception as error:
        end = error
    each = f"{process_group.size} ranks, each " if process_group.size > 1 else ""
    return _record(p, context, tracker, end, each + device_name(context.device))


def train_together(study: Study, group: list[PlannedRun], lines: ProgressLines) -> list[dict[str, Any] | Exception]:
    """Train seeds of a variant in lock-step; return the record of each, or why there is none this time."""
    for p in group:
        p.run.begin()
    context, trackers = group[0].context().with_compiler(study.execution.compile), [_tracker(study, p) for p in group]
    runs, fresh = [p.run for p in group], [p.fresh_model for p in group]
    ends: list[dict[str, Any] | Exception] = []
    for p, tracker, end in zip(group, trackers, train_seeds(runs, fresh, context, trackers, lines), strict=True):
        try:
            record = _record(p, context, tracker, end, device_name(context.device))
        except Exception as error:
            record = error
        ends.append(record)
    return ends


def _tracker(study: Study, p: PlannedRun) -> Tracker:
    name = f"{p.variant.name}-seed{p.run.seed}"
    return Tracker(study.execution.wandb, "grouped-convolution", name, study.name, p.run.config, p.run.folder)


def _record(
    p: PlannedRun, context: RunContext, tracker: Tracker, end: dict[str, Any] | Exception, device: str
) -> dict[str, Any]:
    """Record how a training ended, done or diverged; raise any other error, since the next start tries again."""
    values, status = end, "done"
    if isinstance(values, Exception):
        error, values, status = values, {"reason": str(values), "epoch": p.run.epochs_saved()}, "diverged"
        if not (isinstance(error, RunFailedError) and error.lasting):
            tracker.finish({"status": "failed", **values}, failed=True)
            raise error
    values |= {
        "dataset": p.variant.dataset,
        "broken_images": len(p.dataset.broken),
        "precision": str(context.dtype).removeprefix("torch."),
    }
    result = p.run.finish(status, values, device)
    tracker.finish(public(result), failed=status != "done")
    return result
