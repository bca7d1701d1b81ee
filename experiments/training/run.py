"""Train runs from their last checkpoint to their end: epoch by epoch, saved as they go."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from experiments.errors import RunFailedError
from experiments.memory import advice, is_out_of_memory
from experiments.store import notice
from experiments.store.progress import Progress
from experiments.store.runs import Run
from experiments.tracking import Tracker
from experiments.training.epoch import DivergedError, Stream, evaluate, train_epoch
from experiments.training.learner import Learner
from experiments.training.setting import Setting


def train_run(run: Run, model: nn.Module, setting: Setting, tracker: Tracker) -> dict[str, float]:
    """Train ``model`` from its last checkpoint, or from the start, to the end of the recipe.

    Args:
        run: where checkpoints and metrics go.
        model: freshly built under the run's seed.
        setting: what to train it with.
        tracker: told the metrics of every epoch.

    Returns:
        The metrics of the last epoch and the seconds spent in training.

    Raises:
        RunFailedError: the loss or a weight is no longer finite, or the device has too little memory; the last
            checkpoint is from before.
        KeyboardInterrupt: a notice to stop has come; the checkpoint is of the last step.
    """
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        with notice.looking_out():
            learner = Learner(model, setting, whole_steps(setting))
            (metrics,) = _train([run], learner, setting, [tracker])
            return metrics
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunFailedError(advice(setting.recipe.batch_size, setting.device), lasting=False) from None


def whole_steps(setting: Setting) -> int:
    """Steps in the whole training."""
    return setting.recipe.epochs * max(1, len(setting.dataset.train.labels) // setting.recipe.batch_size)


def _train(
    runs: Sequence[Run], learner: Learner, setting: Setting, trackers: Sequence[Tracker]
) -> list[dict[str, float]]:
    """Train runs side by side, all equally far; returns the last metrics of each, and its seconds."""
    recipe, settings = setting.recipe, [setting.with_labels(run.seed) for run in runs]
    saved = [Progress(run, learner, place, len(runs)) for place, run in enumerate(runs)]
    for progress in saved:
        progress.restore(setting.device)

    def look_out() -> None:
        for progress in saved:
            progress.look_out()
        notice.heed()

    label = runs[0].folder.name.rsplit("-", 1)[0]
    try:
        for epoch in range(len(saved[0].history), recipe.epochs):
            parts, last = [progress.begin_epoch() for progress in saved], epoch + 1 == recipe.epochs
            streams = [Stream(s, run.seed, epoch, part) for s, run, part in zip(settings, runs, parts, strict=True)]

            def after_step(step: int, totals: Tensor, streams: list[Stream] = streams) -> None:
                for progress, total, stream in zip(saved, totals, streams, strict=True):
                    progress.note_step(step, total, stream.generator)
                look_out()

            title = f"{label} epoch {epoch + 1}/{recipe.epochs}"
            trained = train_epoch(learner, streams, epoch, title, after_step, trackers)
            ended = [
                {"epoch": epoch + 1, **metrics, "lr": learner.rate, "seconds": progress.seconds()}
                for metrics, progress in zip(trained, saved, strict=True)
            ]
            for place, (network, metrics) in enumerate(zip(learner.networks, ended, strict=True)):
                if (epoch + 1) % recipe.evaluate_every == 0 or last:
                    metrics |= evaluate(network, setting, after_batch=look_out, crew=learner.crew)
                # The last step may have gone wrong after the last look at the loss.
                finite = all(torch.isfinite(p).all() for p in network.parameters())
                if not (finite and math.isfinite(metrics.get("test_loss", 0.0))):
                    reason = f"the weights or the test loss are no longer finite after epoch {epoch + 1}"
                    raise DivergedError(reason, place)
            for progress, metrics, tracker in zip(saved, ended, trackers, strict=True):
                progress.end_epoch(metrics, last)
                tracker.log(metrics)
    except DivergedError as error:
        for progress in saved[: error.place] + saved[error.place + 1 :]:
            progress.save()
        raise
    return [{**p.history[-1], "seconds": sum(epoch["seconds"] for epoch in p.history)} for p in saved]
