"""Progress bar, step metrics and the check for divergence of one epoch.

The host never waits for the device within an epoch: losses are read once they have arrived.

Legend: S networks trained together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from experiments.errors import RunFailedError
from experiments.tracking import Tracker
from experiments.training.batches import EpochBatches
from experiments.training.learner import Learner

LOSS_CHECK_STEPS = 25  # steps between two readings of the loss


class DivergedError(RunFailedError):
    """The loss or a weight of a network is no longer finite.

    Attributes:
        index: of the network among those trained together.
    """

    def __init__(self, reason: str, index: int) -> None:
        super().__init__(reason)
        self.index = index


class PendingLosses:
    """Losses on their way from the device.

    Attributes:
        step: after which they were summed, counted from 1 within the epoch.
        rate: learning rate after this step.
    """

    def __init__(self, step: int, rate: float, totals_S2: Tensor) -> None:
        """Start the copy of the totals to the host."""
        on_gpu = totals_S2.is_cuda
        self.step, self.rate = step, rate
        self._totals_S2 = totals_S2.to("cpu", non_blocking=on_gpu, copy=True)
        self._event = torch.cuda.Event() if on_gpu else None
        if self._event is not None:
            self._event.record()

    def arrived(self) -> bool:
        """Tell if the losses can be read without waiting."""
        return self._event is None or self._event.query()

    def read(self) -> list[float]:
        """Wait for the losses; return their sums over the steps, one for each network."""
        if self._event is not None:
            self._event.synchronize()
        return self._totals_S2[:, 0].tolist()


class LossMonitor:
    """Losses of one epoch: on the progress bar, to the trackers, checked for divergence."""

    def __init__(
        self, learner: Learner, batches: Sequence[EpochBatches], epoch: int, title: str, trackers: Sequence[Tracker]
    ) -> None:
        """Watch an epoch from its first step on, or from where it was interrupted.

        Args:
            learner: takes the steps.
            batches: of each network.
            epoch: counted from 0.
            title: of the progress bar, which rank 0 shows on a terminal.
            trackers: one for each network; they receive mean loss and learning rate at every reading.
        """
        self._learner, self._epoch, self._steps, self._trackers = learner, epoch, len(batches[0]), trackers
        self._pending: list[PendingLosses] = []
        self._last_step = batches[0].steps_done
        self._last_losses = [float(of_network.total[0]) for of_network in batches]
        hidden = None if learner.process_group.rank == 0 else True  # None: hidden unless on a terminal
        self._bar = tqdm(desc=title, total=self._steps, initial=self._last_step, disable=hidden, leave=False)

    def __enter__(self) -> LossMonitor:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def after_step(self, step: int, totals_S2: Tensor) -> None:
        """Note the losses after a step; check those that have arrived.

        Args:
            step: counted from 1.
            totals_S2: loss and accuracy of each network, summed over the steps so far.

        Raises:
            DivergedError: a loss is no longer finite, at this reading or the one before.
        """
        last = step == self._steps
        if step % LOSS_CHECK_STEPS == 1 or last:
            self._pending.append(PendingLosses(step, self._learner.rate, totals_S2))
        alone = self._learner.process_group.size == 1
        # Processes that train together read at the same steps, so that they stop at the same one.
        while self._pending and (len(self._pending) > 1 or last or (alone and self._pending[0].arrived())):
            self._check(self._pending.pop(0))
        self._bar.update()

    def _check(self, pending: PendingLosses) -> None:
        losses = pending.read()
        for index, loss in enumerate(losses):
            if not loss < float("inf"):
                reason = f"the loss became {loss / pending.step} in epoch {self._epoch + 1}, step {pending.step}"
                raise DivergedError(reason, index)
        self._bar.set_postfix(loss=f"{sum(losses) / len(losses) / pending.step:.3f}")
        steps = pending.step - self._last_step
        for tracker, loss, before in zip(self._trackers, losses, self._last_losses, strict=True):
            means = {"loss": (loss - before) / steps, "lr": pending.rate}
            tracker.log_step(self._epoch * self._steps + pending.step, means)
        self._last_step, self._last_losses = pending.step, losses
