"""Progress of a whole study, estimated from the epochs that were trained so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import mean

from experiments.store import leases
from experiments.store.runs import Run
from experiments.study.plan import PlannedRun
from experiments.training.progress_lines import ProgressLines, in_words


class StudyProgressLines(ProgressLines):
    """Progress lines that name the runs and the time that are left of the study."""

    def __init__(self, planned: Sequence[PlannedRun]) -> None:
        """Begin with the runs that are done.

        Args:
            planned: every run of the study.
        """
        super().__init__()
        self._left = {p.run.folder: p for p in planned}
        self._epochs = {p.variant.name: p.variant.recipe.epochs for p in planned}
        self._epoch_s: dict[str, float] = {}  # of each variant that was trained
        for p in planned:
            result = p.run.result or {}
            if result.get("status") == "done":
                self._epoch_s[p.variant.name] = result["seconds"] / p.variant.recipe.epochs

    def run_ended(self, run: Run) -> None:
        """Remove a run from those left: it is done, or is not tried again in this process."""
        self._left.pop(run.folder, None)

    def estimate(self, run: Run, runs: int, epochs: int, epoch_s: float) -> tuple[float, str]:
        """Return the seconds that are left of the study, and words for run and study; arguments as in the base class.

        A variant that was not trained yet counts as the mean of the others. Processes that divide the study share the
        time.
        """
        self._epoch_s[run.variant] = epoch_s
        unfinished = [p for p in self._left.values() if p.run.result is None]
        waiting = Counter(p.variant.name for p in unfinished)
        waiting[run.variant] -= runs
        typical_s = mean(self._epoch_s.values())
        run_s = runs * epochs * epoch_s
        waiting_s = sum(n * self._epochs[v] * self._epoch_s.get(v, typical_s) for v, n in waiting.items())
        study_s = run_s + waiting_s / self._processes(unfinished)
        self.bar_note = f"study {in_words(study_s)}"
        count = f"{len(unfinished)} run{'s' * (len(unfinished) != 1)}"
        return study_s, f"about {in_words(run_s)} of this run and {in_words(study_s)} of the study left ({count})"

    @staticmethod
    def _processes(unfinished: Sequence[PlannedRun]) -> int:
        """Return how many processes hold runs of the study now, this one among them."""
        holders = [leases.holder(p.run.folder) for p in unfinished]
        return max(1, len({(h.machine, h.pid) for h in holders if h is not None}))
