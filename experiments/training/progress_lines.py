"""Progress of a training as text: in lines if there is no progress bar, else on the bar."""

from __future__ import annotations

import sys
import time

from experiments.store.runs import Run

PROGRESS_LINE_INTERVAL_S = 30.0


class ProgressLines:
    """Lines on runs in training: one after the first epoch, then at most one each half minute.

    Attributes:
        bar_note: text after the title of the progress bar.
    """

    bar_note: str = ""

    def __init__(self) -> None:
        self._last_line_at = float("-inf")

    def estimate(self, run: Run, runs: int, epochs: int, epoch_s: float) -> tuple[float, str]:
        """Return the seconds that are left, and a phrase with them.

        Args:
            run: in training.
            runs: trained in lock-step, this one among them.
            epochs: left of each of them.
            epoch_s: seconds of an epoch for each of them: those of the last one, divided by the runs.
        """
        left_s = runs * epochs * epoch_s
        return left_s, f"about {in_words(left_s)} of this run left"

    def epoch_ended(self, run: Run, title: str, loss: float, runs: int, epochs: int, epoch_s: float) -> None:
        """Print a line if one is due and there is no progress bar; none if less than half a minute is left.

        Args:
            run: in training.
            title: of the epoch that has ended.
            loss: its mean training loss.
            runs, epochs, epoch_s: as ``estimate`` takes them.
        """
        left_s, words = self.estimate(run, runs, epochs, epoch_s)
        now = time.monotonic()
        due = left_s >= PROGRESS_LINE_INTERVAL_S and now - self._last_line_at >= PROGRESS_LINE_INTERVAL_S
        if due and not sys.stderr.isatty():
            print(f"{title}: loss {loss:.3f}, {words}", flush=True)
            self._last_line_at = now


def in_words(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours: ``42 s``, ``4 min``, ``2.2 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
