"""Train runs to the end of their recipe, one by one or several seeds in lock-step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from experiments.errors import RunFailedError
from experiments.out_of_memory import batch_size_advice, is_out_of_memory
from experiments.store import stop_signal
from experiments.store.leases import LeaseLostError
from experiments.store.lockstep import steps_trained
from experiments.store.runs import Run
from experiments.tracking import Tracker
from experiments.training.data_parallel import DataParallelLearner, SharedRun
from experiments.training.learner import Learner
from experiments.training.loop import train
from experiments.training.loss_monitor import DivergedError
from experiments.training.multi_seed import MultiSeedLearner
from experiments.training.process_group import SINGLE_PROCESS, ProcessGroup
from experiments.training.progress_lines import ProgressLines
from experiments.training.run_context import RunContext
from experiments.training.run_kernels import kernels_of
from experiments.training.session import TrainingSession


def train_run(
    run: Run,
    model: nn.Module,
    context: RunContext,
    tracker: Tracker,
    process_group: ProcessGroup = SINGLE_PROCESS,
    lines: ProgressLines | None = None,
) -> dict[str, Any]:
    """Train a network from its last checkpoint, or from the start, to the end of the recipe.

    Args:
        run: folder of checkpoints and metrics.
        model: freshly built under the run's seed.
        context: images, recipe and precision.
        tracker: receives the metrics of every epoch.
        process_group: the processes that train it together and all call this; rank 0 alone reads and writes the run.
        lines: print how far the run is.

    Returns:
        The metrics of the last epoch, the seconds spent in training, ``Learner.compilation``, and the table by which
        kernels were chosen.

    Raises:
        RunFailedError: the loss or a weight is no longer finite, or the device has too little memory; the last
            checkpoint is from before.
        LeaseLostError: another process has taken over the run.
        KeyboardInterrupt: a stop signal has come; the checkpoint is of the last step.
    """
    choose_kernels()
    try:
        with (
            stop_signal.deferred(together=process_group.size > 1),
            kernels_of([run], [model], context, process_group) as kernels,
        ):
            if process_group.size == 1:
                learner = Learner(model, context, context.steps)
            else:
                learner = DataParallelLearner(model, context, context.steps, process_group, run.seed)
                run = SharedRun.shared(run, process_group)
            session = TrainingSession([run], learner, context, [tracker], lines or ProgressLines())
            train(learner, session)
            (result,) = session.results()
            assert isinstance(result, dict), "the lost lease of a single run is raised"
            return result | {"kernels": kernels}
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunFailedError(batch_size_advice(context.recipe.batch_size, context.device), lasting=False) from None


def train_seeds(
    runs: Sequence[Run],
    fresh: Sequence[Callable[[], nn.Module]],
    context: RunContext,
    trackers: Sequence[Tracker],
    lines: ProgressLines | None = None,
) -> list[dict[str, Any] | Exception]:
    """Train several seeds of a variant in lock-step, each as ``train_run`` would.

    Runs that are equally far are trained together. A network that diverges among others goes back to its last
    checkpoint and is trained alone, where it may diverge again. Where memory is short, half as many train at once.

    Args:
        runs: they differ in their seeds alone.
        fresh: functions that build the network of each run, under its seed.
        context: images, recipe and precision.
        trackers: one for each run.
        lines: print how far the runs are.

    Returns:
        For each run the result of ``train_run``, or the exception it would raise: ``RunFailedError``, or
        ``LeaseLostError`` where another process has taken over the run, without harm to the others. The result of a
        run that ended together with others has ``seeds_at_once``, how many these were with it.

    Raises:
        KeyboardInterrupt: a stop signal has come; the checkpoints are of the last step.
    """
    lines = lines or ProgressLines()
    ends: dict[int, dict[str, Any] | Exception] = {}
    alone, most = set[int](), len(runs)
    while left := [k for k in range(len(runs)) if k not in ends]:
        together = _equally_far(runs, [k for k in left if k not in alone])[:most]
        if len(together) < 2:
            first = (together or left)[0]
            try:
                ends[first] = train_run(runs[first], fresh[first](), context, trackers[first], lines=lines)
            except (RunFailedError, LeaseLostError) as error:
                ends[first] = error
            continue
        try:
            models = [fresh[k]() for k in together]
            own_runs, own_trackers = [runs[k] for k in together], [trackers[k] for k in together]
            ends |= zip(together, _train_in_lockstep(own_runs, models, context, own_trackers, lines), strict=True)
        except DivergedError as error:
            alone.add(together[error.index])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            most = len(together) // 2
            warning = (
                f"warning: out of memory on {context.device} with {len(together)} seeds at once; going on with {most}"
            )
            print(warning, file=sys.stderr, flush=True)
    return [ends[k] for k in range(len(runs))]


def _train_in_lockstep(
    runs: Sequence[Run],
    models: Sequence[nn.Module],
    context: RunContext,
    trackers: Sequence[Tracker],
    lines: ProgressLines,
) -> list[dict[str, Any] | LeaseLostError]:
    """Train runs with equally many steps done; if one diverges, the others are saved at this step."""
    choose_kernels()
    with stop_signal.deferred():
        learner = MultiSeedLearner(models, context, context.steps)
        with kernels_of(runs, [learner.wide_network, learner.networks[0]], context) as kernels:
            session = TrainingSession(runs, learner, context, trackers, lines)
            try:
                train(learner, session)
            except DivergedError as error:
                session.save_others(error.index)
                raise
        more = {"kernels": kernels, "seeds_at_once": len(runs)}
        return [end | more if isinstance(end, dict) else end for end in session.results()]


def _equally_far(runs: Sequence[Run], candidates: Sequence[int]) -> list[int]:
    """Return the candidates, by index, with as many steps done as the first of them."""
    reached = [steps_trained(runs[k]) for k in candidates]
    return [k for k, steps in zip(candidates, reached, strict=True) if steps == reached[0]]


def choose_kernels() -> None:
    """Have cuDNN take kernels that give the same numbers each time."""
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
