"""Train runs from their last checkpoint to their end: epoch by epoch, saved as they go."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from experiments.errors import RunFailedError
from experiments.memory import advice, is_out_of_memory
from experiments.store import stop_signal
from experiments.store.leases import LeaseLostError
from experiments.store.progress import Progress
from experiments.store.runs import Run
from experiments.store.siblings import how_far
from experiments.tracking import Tracker
from experiments.training.data_parallel import DataParallelLearner, SharedRun
from experiments.training.epoch import DivergedError, EpochBatches, evaluate, train_epoch
from experiments.training.learner import Learner
from experiments.training.multi_seed import MultiSeedLearner
from experiments.training.process_group import SINGLE_PROCESS, ProcessGroup
from experiments.training.run_context import RunContext

PROGRESS_LINE_INTERVAL_S = 30.0


def train_run(
    run: Run, model: nn.Module, context: RunContext, tracker: Tracker, process_group: ProcessGroup = SINGLE_PROCESS
) -> dict[str, Any]:
    """Train ``model`` from its last checkpoint, or from the start, to the end of the recipe.

    Args:
        run: where checkpoints and metrics go.
        model: freshly built under the run's seed.
        context: what to train it with.
        tracker: told the metrics of every epoch.
        process_group: the processes that train it together and all call this; rank 0 alone reads and writes the run.

    Returns:
        The metrics of the last epoch, the seconds spent in training, and whether its steps were compiled.

    Raises:
        RunFailedError: the loss or a weight is no longer finite, or the device has too little memory; the last
            checkpoint is from before.
        KeyboardInterrupt: a notice to stop has come; the checkpoint is of the last step.
    """
    choose_kernels()
    try:
        with stop_signal.deferred(together=process_group.size > 1):
            if process_group.size == 1:
                learner = Learner(model, context, context.steps)
            else:
                learner = DataParallelLearner(model, context, context.steps, process_group, run.seed)
                run = SharedRun.shared(run, process_group)
            (ended,) = _train([run], learner, context, [tracker])
            assert isinstance(ended, dict), "alone, a lost lease is raised"
            return ended
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunFailedError(advice(context.recipe.batch_size, context.device), lasting=False) from None


def train_at_once(
    runs: Sequence[Run],
    fresh: Sequence[Callable[[], nn.Module]],
    context: RunContext,
    trackers: Sequence[Tracker],
) -> list[dict[str, Any] | Exception]:
    """Train runs of one variant side by side, each as ``train_run`` would.

    What is equally far goes on together. A network that is no longer finite beside others goes back to its last
    checkpoint and on alone, where it is told whether it diverges. Where memory is short, half as many go on at once.

    Args:
        runs: their seeds differ and nothing else.
        fresh: build the network of each, under its seed.
        context: what to train them with.
        trackers: one for each.

    Returns:
        Of each run what ``train_run`` returns, or what it raises: ``RunFailedError``, or ``LeaseLostError`` where
        another process has taken the run over; the others go on.

    Raises:
        KeyboardInterrupt: a notice to stop has come; the checkpoints are of the last step.
    """
    ends: dict[int, dict[str, Any] | Exception] = {}
    apart, most = set[int](), len(runs)
    while left := sorted((k for k in range(len(runs)) if k not in ends), key=lambda k: k in apart):
        first, reached = left[0], how_far(runs[left[0]])
        group = [k for k in left if k not in apart and how_far(runs[k]) == reached][:most] or [first]
        if len(group) == 1:
            try:
                ends[first] = train_run(runs[first], fresh[first](), context, trackers[first])
            except (RunFailedError, LeaseLostError) as error:
                ends[first] = error
            continue
        choose_kernels()
        try:
            with stop_signal.deferred():
                learner = MultiSeedLearner([fresh[k]() for k in group], context, context.steps)
                found = _train([runs[k] for k in group], learner, context, [trackers[k] for k in group])
            ends |= dict(zip(group, found, strict=True))
        except DivergedError as error:
            apart.add(group[error.place])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            most = len(group) // 2
            told = f"warning: out of memory on {context.device} with {len(group)} seeds at once; going on with {most}"
            print(told, file=sys.stderr, flush=True)
        learner = None  # what it holds is free for the next
    return [ends[k] for k in range(len(runs))]


def choose_kernels() -> None:
    """Have cuDNN take kernels that give the same numbers each time."""
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


def _train(
    runs: Sequence[Run], learner: Learner, context: RunContext, trackers: Sequence[Tracker]
) -> list[dict[str, Any] | LeaseLostError]:
    """Train runs side by side, all equally far; returns the last metrics of each, and its seconds.

    Where another process takes one over, its network is trained on unseen, for the sake of the others.
    """
    recipe, contexts = context.recipe, [context.with_labels(run.seed) for run in runs]
    saved = [Progress(run, learner, place, len(runs)) for place, run in enumerate(runs)]
    lost: dict[int, LeaseLostError] = {}

    def each(act: Callable[[int, Progress], None]) -> None:
        for place, progress in enumerate(saved):
            try:
                if place not in lost:
                    act(place, progress)
            except LeaseLostError as error:
                lost[place] = error
                if len(lost) == len(saved):
                    raise

    def save_if_due() -> None:
        each(lambda _, progress: progress.save_if_due())
        stop_signal.raise_if_stopping()

    def save_beside(diverged: int) -> None:
        each(lambda k, progress: progress.save() if k != diverged and _is_finite(learner.networks[k]) else None)

    each(lambda _, progress: progress.restore(context.device))

    label = runs[0].folder.name.rsplit("-", 1)[0]
    try:
        for epoch in range(len(saved[0].history), recipe.epochs):
            parts, last = [progress.begin_epoch() for progress in saved], epoch + 1 == recipe.epochs
            streams = [
                EpochBatches(s, run.seed, epoch, part) for s, run, part in zip(contexts, runs, parts, strict=True)
            ]

            def after_step(step: int, totals: Tensor, streams: list[EpochBatches] = streams) -> None:
                for progress, total, stream in zip(saved, totals, streams, strict=True):
                    progress.note_step(step, total, stream.generator)
                save_if_due()

            title = f"{label} epoch {epoch + 1}/{recipe.epochs}"
            trained = train_epoch(learner, streams, epoch, title, after_step, trackers)
            ended = [
                {"epoch": epoch + 1, **metrics, "lr": learner.rate, "seconds": progress.seconds()}
                for metrics, progress in zip(trained, saved, strict=True)
            ]
            for place, (network, metrics) in enumerate(zip(learner.networks, ended, strict=True)):
                if (epoch + 1) % recipe.evaluate_every == 0 or last:
                    metrics |= evaluate(network, context, after_batch=save_if_due, process_group=learner.process_group)
                # The last step may have gone wrong after the last look at the loss.
                if not (_is_finite(network) and math.isfinite(metrics.get("test_loss", 0.0))):
                    reason = f"the weights or the test loss are no longer finite after epoch {epoch + 1}"
                    raise DivergedError(reason, place)

            def end(place: int, progress: Progress, ended: list[dict[str, float]] = ended, last: bool = last) -> None:
                progress.end_epoch(ended[place], last)
                trackers[place].log(ended[place])

            each(end)
            if learner.process_group.rank == 0 and not last:
                left = (recipe.epochs - epoch - 1) * sum(metrics["seconds"] for metrics in ended)
                _print_progress(
                    f"{title}: loss {ended[0]['train_loss']:.3f}, about {left / 60:.0f} min of this run left"
                )
    except DivergedError as error:
        save_beside(error.place)
        raise
    return [
        lost[k]
        if k in lost
        else {**p.history[-1], "seconds": sum(epoch["seconds"] for epoch in p.history), **learner.compilation}
        for k, p in enumerate(saved)
    ]


def _print_progress(text: str) -> None:
    """Print a line where no progress bar is seen, at most each half minute."""
    global _last_line_at
    if not sys.stderr.isatty() and time.monotonic() - _last_line_at >= PROGRESS_LINE_INTERVAL_S:
        print(text, flush=True)
        _last_line_at = time.monotonic()


_last_line_at = time.monotonic()


def _is_finite(network: nn.Module) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in network.parameters())
