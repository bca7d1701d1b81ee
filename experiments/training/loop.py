"""The training loop: the epochs of a run and the steps of an epoch. ``Learner.step`` is the step.

As a rule one network is trained. Several seeds of a variant may be trained in lock-step, hence the dimension S.
Checkpoints, leases and trackers are the matter of ``session``, progress bar and divergence that of ``loss_monitor``.

Legend: S networks trained together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from experiments.training.batches import EpochBatches
from experiments.training.evaluation import evaluate
from experiments.training.learner import Learner
from experiments.training.session import TrainingSession


def train(learner: Learner, session: TrainingSession) -> None:
    """Train the networks of a learner from their last checkpoint to the end of the recipe.

    Raises:
        DivergedError: a loss or a weight is no longer finite.
        KeyboardInterrupt: a stop signal has come; the checkpoint is of the last step.
    """
    for epoch in session.epochs_left():
        batches = session.begin_epoch(epoch)
        with session.monitor(epoch) as monitor:
            means = train_epoch(learner, batches, session.after_step, monitor.after_step)
        metrics = session.summary(epoch, means)
        if session.is_evaluated(epoch):
            for network, of_network in zip(learner.networks, metrics, strict=True):
                of_network |= evaluate(network, session.context, session.save_if_due, learner.process_group)
        session.end_epoch(epoch, metrics)


def train_epoch(
    learner: Learner, batches: Sequence[EpochBatches], *after_step: Callable[[int, Tensor], None]
) -> list[dict[str, float]]:
    """Take the steps of one epoch that are not taken yet.

    Args:
        learner: takes the steps.
        batches: of each network; all are equally far.
        after_step: functions of the steps taken so far, and of loss and accuracy summed over them, (S, 2).

    Returns:
        ``train_loss`` and ``train_accuracy`` of each network: means over the steps of the epoch.
    """
    learner.begin_epoch()
    steps = len(batches[0])
    totals_S2 = torch.stack([of_network.total for of_network in batches])
    for step in range(batches[0].steps_done + 1, steps + 1):
        totals_S2 += learner.step([of_network.batch(step, learner.process_group) for of_network in batches])
        for observe in after_step:
            observe(step, totals_S2)
    return [{"train_loss": loss / steps, "train_accuracy": right / steps} for loss, right in totals_S2.tolist()]
