"""Train the runs of a study: one by one or several seeds at once, here, by several processes, or on a cluster."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from typing import Any

from experiments.errors import RunFailedError
from experiments.store.divide import outcomes
from experiments.store.leases import LeaseLostError
from experiments.store.runs import Run, config_hash, public
from experiments.store.siblings import siblings
from experiments.study.config import Study
from experiments.study.plan import PlannedRun
from experiments.tracking import Tracker
from experiments.training.process_group import SINGLE_PROCESS, ProcessGroup
from experiments.training.run import train_at_once, train_run
from experiments.training.run_context import RunContext, choose_device, device_name
from experiments.training.seeds_at_once import choose_seeds_at_once


def train_all(study: Study, planned: list[PlannedRun], process_group: ProcessGroup = SINGLE_PROCESS) -> int:
    """Train what is not trained yet, alone or beside other processes on the study; returns how many runs failed."""

    def say(k: int, text: str) -> None:
        print(f"[{k + 1}/{len(planned)}] {planned[k].variant.name}, seed {planned[k].run.seed}: {text}", flush=True)

    over: set[int] = set()
    beside: dict[int, str] = {}  # with whom a run was trained here, in words

    def train(k: int, run: Run) -> dict[str, Any]:
        lead = replace(planned[k], run=run)
        others = {j: p.run for j, p in enumerate(planned) if j != k and p.variant == lead.variant}
        others = (
            {} if process_group.size > 1 else {j: other for j, other in others.items() if j not in over | beside.keys()}
        )
        most = _at_once(study, lead, 1 + len(others), lambda text: say(k, text))
        with siblings(run, others, most) as held:
            if not held:
                return train_planned(study, lead, process_group)
            group = {k: lead} | {j: replace(planned[j], run=other) for j, other in held.items()}
            ends = dict(zip(group, _train_together(study, list(group.values())), strict=True))
            for j, end in ends.items():
                seeds = [str(p.run.seed) for i, p in group.items() if i != j]
                beside[j] = f" (together with seed{'s' * (len(seeds) > 1)} {', '.join(seeds)})"
                if j != k and isinstance(end, LeaseLostError):
                    say(j, str(end))
                    del beside[j]
                elif j != k and isinstance(end, Exception):
                    held[j].fail(end, held[j].epochs_saved())
        if isinstance(end := ends[k], Exception):
            raise end
        return end

    runs = [p.run for p in planned]
    if study.on == "ray":
        from experiments.execution.on_cluster import outcomes_on_ray

        found = closing(outcomes_on_ray(study, runs, say))
    else:
        found = nullcontext(outcomes(runs, train, say))
    failed = 0
    with found as ended:
        for k, result, where in ended:
            over.add(k)
            where = beside.get(k, where)
            if result["status"] == "done":
                say(k, f"accuracy {result['test_accuracy']:.3f}, {result['seconds']:.0f} s{where}")
            else:
                failed += 1
                kept = f"checkpoint of epoch {result['epoch']} kept" if result["epoch"] else "no checkpoint yet"
                say(k, f"{result['status']}: {result['reason']}; {kept}{where}")
    return failed


def train_planned(study: Study, p: PlannedRun, process_group: ProcessGroup = SINGLE_PROCESS) -> dict[str, Any]:
    """Train one run to its end and record it; rank 0 of a process group does so with the others."""
    p.run.begin()
    context = p.context().with_compiler(study.compile if process_group.size == 1 else "never")
    model, tracker = p.fresh_model(), _tracker(study, p)
    end: dict[str, Any] | Exception
    try:
        with process_group.training(p.run.folder.name):
            end = train_run(p.run, model, context, tracker, process_group)
    except Exception as error:
        end = error
    each = f"{process_group.size} ranks, each " if process_group.size > 1 else ""
    return _record(p, context, tracker, end, each + device_name(context.device))


def _train_together(study: Study, group: list[PlannedRun]) -> list[dict[str, Any] | Exception]:
    """Train seeds of a variant side by side and record each; in place of a record, why there is none this time."""
    for p in group:
        p.run.begin()
    context, trackers = group[0].context().with_compiler(study.compile), [_tracker(study, p) for p in group]
    runs, fresh = [p.run for p in group], [p.fresh_model for p in group]
    ends: list[dict[str, Any] | Exception] = []
    for p, tracker, end in zip(group, trackers, train_at_once(runs, fresh, context, trackers), strict=True):
        if isinstance(end, dict):
            end |= {"seeds_at_once": len(group)}
        try:
            record = _record(p, context, tracker, end, device_name(context.device))
        except Exception as error:
            record = error
        ends.append(record)
    return ends


def _at_once(study: Study, p: PlannedRun, most: int, say: Callable[[str], None]) -> int:
    """How many seeds of a variant to train at once; what ``auto`` means is tried once for each architecture."""
    if study.seeds_at_once != "auto":
        return min(study.seeds_at_once, most)
    if most == 1 or choose_device(p.variant.recipe.device).type != "cuda":
        return 1  # slower on a CPU, see ``seeds_trial``
    v = p.variant
    key = config_hash({"model": v.model, "views": asdict(v.views), "recipe": asdict(v.recipe), "most": most})
    if key not in _tried:
        _tried[key], faster = choose_seeds_at_once(p.fresh_model, p.context().with_compiler(study.compile), most)
        if _tried[key] > 1:
            say(f"{_tried[key]} seeds at once are {faster:.1f} times as fast as one after the other")
    return _tried[key]


_tried: dict[str, int] = {}


def _tracker(study: Study, p: PlannedRun) -> Tracker:
    name = f"{p.variant.name}-seed{p.run.seed}"
    return Tracker(study.wandb, "grouped-convolution", name, study.name, p.run.config, p.run.folder)


def _record(
    p: PlannedRun, context: RunContext, tracker: Tracker, end: dict[str, Any] | Exception, device: str
) -> dict[str, Any]:
    """Record how a training ended, done or diverged; raises what does not last, since the next start tries again."""
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
