"""Runs in training: reading from the run store, and writing of checkpoints, metrics and progress.

As a rule a session has one run. Seeds that one learner trains in lock-step share a session; each of them still has a
checkpoint, a lease, a metrics file and a tracker of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from experiments.store import stop_signal
from experiments.store.leases import LeaseLostError
from experiments.store.progress import Progress
from experiments.store.runs import Run
from experiments.tracking import Tracker
from experiments.training.batches import EpochBatches
from experiments.training.learner import Learner
from experiments.training.loss_monitor import DivergedError, LossMonitor
from experiments.training.progress_lines import ProgressLines
from experiments.training.run_context import RunContext


class TrainingSession:
    """Runs that one learner trains in lock-step.

    If another process takes over the lease of a run, its network is still trained together with the others, but
    no file of the run is written any more.

    Attributes:
        context: images, recipe and precision of the runs.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        learner: Learner,
        context: RunContext,
        trackers: Sequence[Tracker],
        lines: ProgressLines,
    ) -> None:
        """Restore every run from its last checkpoint.

        Args:
            runs: one for each network of the learner; all are equally far.
            learner: trains them.
            context: images, recipe and precision.
            trackers: one for each run; they receive the metrics of every epoch.
            lines: print how far the runs are.

        Raises:
            LeaseLostError: other processes have taken over all runs. The methods below raise it too.
        """
        self.context = context
        self._runs, self._learner, self._trackers, self._lines = runs, learner, trackers, lines
        self._progress = [Progress(run, learner, index, len(runs)) for index, run in enumerate(runs)]
        self._contexts = [context.with_labels(run.seed) for run in runs]
        self._batches: list[EpochBatches] = []
        self._lost: dict[int, LeaseLostError] = {}
        for index, progress in self._held():
            with self._note_lost_lease(index):
                progress.restore(context.device)

    def epochs_left(self) -> range:
        """Return the epochs to train, counted from 0; the first of them may have been begun."""
        return range(len(self._progress[0].history), self.context.recipe.epochs)

    def begin_epoch(self, epoch: int) -> list[EpochBatches]:
        """Return the batches of an epoch for each run; steps that a checkpoint holds count as done."""
        parts = [progress.begin_epoch() for progress in self._progress]
        per_run = zip(self._contexts, self._runs, parts, strict=True)
        self._batches = [EpochBatches(context, run.seed, epoch, part) for context, run, part in per_run]
        return self._batches

    def monitor(self, epoch: int) -> LossMonitor:
        """Return the progress bar of an epoch, which sends losses to the trackers and checks them."""
        title = ", ".join(filter(None, [self._title(epoch), self._lines.bar_note]))
        return LossMonitor(self._learner, self._batches, epoch, title, self._trackers)

    def after_step(self, step: int, totals_S2: Tensor) -> None:
        """Record the state of the epoch; save it if that is due.

        Args:
            step: of the epoch, counted from 1.
            totals_S2: loss and accuracy of each network, summed over the steps so far.

        Raises:
            KeyboardInterrupt: a stop signal has come; everything is saved.
        """
        for progress, total, batches in zip(self._progress, totals_S2, self._batches, strict=True):
            progress.note_step(step, total, batches.generator)
        self.save_if_due()

    def save_if_due(self) -> None:
        """Save the epoch so far if the last checkpoint is old, or before stopping; raises as ``after_step``."""
        for index, progress in self._held():
            with self._note_lost_lease(index):
                progress.save_if_due()
        stop_signal.raise_if_stopping()

    def summary(self, epoch: int, means: list[dict[str, float]]) -> list[dict[str, float]]:
        """Return the metrics of an epoch for each run: its number from 1, the means, learning rate and seconds."""
        return [
            {"epoch": epoch + 1, **of_run, "lr": self._learner.rate, "seconds": progress.seconds()}
            for of_run, progress in zip(means, self._progress, strict=True)
        ]

    def is_evaluated(self, epoch: int) -> bool:
        """Tell if the recipe evaluates the networks after an epoch."""
        return (epoch + 1) % self.context.recipe.evaluate_every == 0 or self._is_last(epoch)

    def end_epoch(self, epoch: int, metrics: list[dict[str, float]]) -> None:
        """Record the metrics of an epoch, and save it if it is the last or if the time allows for a checkpoint.

        Raises:
            DivergedError: a weight or the test loss is no longer finite: a step went wrong after the last check.
        """
        for index, (network, of_run) in enumerate(zip(self._learner.networks, metrics, strict=True)):
            if not (_is_finite(network) and math.isfinite(of_run.get("test_loss", 0.0))):
                raise DivergedError(f"the weights or the test loss are no longer finite after epoch {epoch + 1}", index)
        for index, progress in self._held():
            with self._note_lost_lease(index):
                progress.end_epoch(metrics[index], self._is_last(epoch))
                self._trackers[index].log(metrics[index])
        if self._learner.process_group.rank == 0 and not self._is_last(epoch):
            left, seconds = self.context.recipe.epochs - epoch - 1, self._progress[0].seconds()
            loss = metrics[0]["train_loss"]
            self._lines.epoch_ended(self._runs[0], self._title(epoch), loss, len(self._runs), left, seconds)

    def save_others(self, diverged: int) -> None:
        """Save every run with finite weights, except the one that has diverged, given by its index."""
        for index, progress in self._held():
            if index != diverged and _is_finite(self._learner.networks[index]):
                with self._note_lost_lease(index):
                    progress.save()

    def results(self) -> list[dict[str, Any] | LeaseLostError]:
        """Return the last metrics of each run with the seconds of the training, or the error of its lost lease."""
        return [
            self._lost.get(index)
            or {
                **progress.history[-1],
                "seconds": sum(epoch["seconds"] for epoch in progress.history),
                **self._learner.compilation,
            }
            for index, progress in enumerate(self._progress)
        ]

    def _title(self, epoch: int) -> str:
        variant_and_seed = self._runs[0].folder.name.rsplit("-", 1)[0]
        return f"{variant_and_seed} epoch {epoch + 1}/{self.context.recipe.epochs}"

    def _is_last(self, epoch: int) -> bool:
        return epoch + 1 == self.context.recipe.epochs

    def _held(self) -> Iterator[tuple[int, Progress]]:
        """Yield the runs whose leases this process still holds, with their indices."""
        return ((index, progress) for index, progress in enumerate(self._progress) if index not in self._lost)

    @contextmanager
    def _note_lost_lease(self, index: int) -> Iterator[None]:
        """Record a lost lease; raise the error if it was the last one."""
        try:
            yield
        except LeaseLostError as error:
            self._lost[index] = error
            if len(self._lost) == len(self._runs):
                raise


def _is_finite(network: nn.Module) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in network.parameters())
