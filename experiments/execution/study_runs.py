"""Train the runs of a study, one by one or several seeds at once, in this process or on a cluster."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from experiments.execution.cluster_runs import outcomes_on_ray
from experiments.execution.planned_run import train_planned, train_together
from experiments.execution.study_progress import StudyProgressLines
from experiments.store.leases import LeaseLostError
from experiments.store.lockstep import hold_lockstep_runs
from experiments.store.runs import Run, config_hash
from experiments.store.work_sharing import outcomes
from experiments.study.config import Study
from experiments.study.plan import PlannedRun
from experiments.training.process_group import SINGLE_PROCESS, ProcessGroup
from experiments.training.run_context import choose_device
from experiments.training.seeds_at_once import choose_seeds_at_once


def train_all(study: Study, planned: list[PlannedRun], process_group: ProcessGroup = SINGLE_PROCESS) -> int:
    """Train the runs that are not done; other processes may work on the same study.

    Args:
        study: how its runs are trained, and where.
        planned: every run of the study.
        process_group: processes that train each run together; this one is rank 0.

    Returns:
        The number of runs that failed.
    """
    training = StudyTraining(study, planned, process_group)
    runs = [p.run for p in planned]
    if study.execution.on == "ray":
        ended = closing(outcomes_on_ray(study, runs, training.say))
    else:
        ended = nullcontext(outcomes(runs, training.train, training.say))
    failed = 0
    with ended as results:
        for k, result, where in results:
            failed += training.end(k, result, where)
    return failed


class StudyTraining:
    """The runs of a study in training, called by their index among those that are planned."""

    def __init__(self, study: Study, planned: list[PlannedRun], process_group: ProcessGroup) -> None:
        """Prepare the training; arguments as in ``train_all``."""
        self._study, self._planned, self._process_group = study, planned, process_group
        self._lines = StudyProgressLines(planned)
        self._ended: set[int] = set()
        self._trained_with: dict[int, str] = {}  # seeds that a run was trained together with, in words

    def say(self, k: int, text: str) -> None:
        """Print a line on a run."""
        p = self._planned[k]
        print(f"[{k + 1}/{len(self._planned)}] {p.variant.name}, seed {p.run.seed}: {text}", flush=True)

    def train(self, k: int, run: Run) -> dict[str, Any]:
        """Train a run that this process holds, and other seeds of its variant with it where that pays.

        Returns:
            The record of the run.
        """
        lead = replace(self._planned[k], run=run)
        others = self._trainable_with(k)
        most = _seeds_at_once(self._study, lead, 1 + len(others), partial(self.say, k))
        with hold_lockstep_runs(run, others, most) as held:
            if not held:
                return train_planned(self._study, lead, self._process_group, self._lines)
            group = {k: lead} | {j: replace(self._planned[j], run=other) for j, other in held.items()}
            ends = dict(zip(group, train_together(self._study, list(group.values()), self._lines), strict=True))
            for j, end in ends.items():
                seeds = [str(p.run.seed) for i, p in group.items() if i != j]
                self._trained_with[j] = f" (together with seed{'s' * (len(seeds) > 1)} {', '.join(seeds)})"
                if j != k and isinstance(end, LeaseLostError):
                    self.say(j, str(end))
                    del self._trained_with[j]
                elif j != k and isinstance(end, Exception):
                    held[j].fail(end, held[j].epochs_saved())
        if isinstance(end := ends[k], Exception):
            raise end
        return end

    def end(self, k: int, result: dict[str, Any], where: str) -> bool:
        """Print how a run ended, here or elsewhere; return True if it failed."""
        self._ended.add(k)
        self._lines.run_ended(self._planned[k].run)
        where = self._trained_with.get(k, where)
        if result["status"] == "done":
            self.say(k, f"accuracy {result['test_accuracy']:.3f}, {result['seconds']:.0f} s{where}")
            return False
        kept = f"checkpoint of epoch {result['epoch']} kept" if result["epoch"] else "no checkpoint yet"
        self.say(k, f"{result['status']}: {result['reason']}; {kept}{where}")
        return True

    def _trainable_with(self, k: int) -> dict[int, Run]:
        """Return the other seeds of a run's variant that this process has not trained; none for several processes."""
        if self._process_group.size > 1:
            return {}
        variant, tried = self._planned[k].variant, self._ended | self._trained_with.keys() | {k}
        return {j: p.run for j, p in enumerate(self._planned) if p.variant == variant and j not in tried}


def _seeds_at_once(study: Study, p: PlannedRun, most: int, say: Callable[[str], None]) -> int:
    """Return how many seeds of a variant to train at once; ``auto`` is measured once for each architecture."""
    if study.execution.seeds_at_once != "auto":
        return min(study.execution.seeds_at_once, most)
    if most == 1 or choose_device(p.variant.recipe.device).type != "cuda":
        return 1  # slower on a CPU, see ``seeds_at_once``
    v = p.variant
    key = config_hash({"model": v.model, "views": asdict(v.views), "recipe": asdict(v.recipe), "most": most})
    if key not in _measured:
        _measured[key], faster = choose_seeds_at_once(
            p.fresh_model, p.context().with_compiler(study.execution.compile), most
        )
        if _measured[key] > 1:
            say(f"{_measured[key]} seeds at once are {faster:.1f} times as fast as one after the other")
    return _measured[key]


_measured: dict[str, int] = {}  # seeds at once, by architecture and recipe
