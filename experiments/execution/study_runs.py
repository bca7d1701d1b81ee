"""Train the runs of a study: one by one or several seeds at once, here, by several processes, or on a cluster."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from typing import Any

from experiments.execution.cluster_runs import outcomes_on_ray
from experiments.execution.planned_run import train_planned, train_together
from experiments.store.divide import outcomes
from experiments.store.leases import LeaseLostError
from experiments.store.runs import Run, config_hash
from experiments.store.siblings import siblings
from experiments.study.config import Study
from experiments.study.plan import PlannedRun
from experiments.training.process_group import SINGLE_PROCESS, ProcessGroup
from experiments.training.run_context import choose_device
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
            ends = dict(zip(group, train_together(study, list(group.values())), strict=True))
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
    here = study.on == "here"
    failed = 0
    with nullcontext(outcomes(runs, train, say)) if here else closing(outcomes_on_ray(study, runs, say)) as ended:
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
