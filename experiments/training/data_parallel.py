"""A network that several processes train, each on its share of every batch: data parallelism with equal steps."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from experiments.data.datasets import Dataset
from experiments.store import stop_signal
from experiments.store.runs import Run
from experiments.training.batches import Batch
from experiments.training.learner import Learner
from experiments.training.process_group import SINGLE_PROCESS, ProcessGroup
from experiments.training.recipe import Recipe
from experiments.training.run_context import RunContext
from experiments.training.sync_batch_norm import synchronise_batch_norms

STOP_CHECK_STEPS = 25  # steps between two readings of the stop flag on a GPU, without waiting for the GPU


class DataParallelLearner(Learner):
    """Replica of a network on one rank. A step equals that of one process on the whole batch, up to rounding.

    Losses, gradients and batch statistics are taken over the whole batch. Dropout differs: every rank draws noise of
    its own, which depends on seed, step and rank alone. A stop signal to any rank stops all ranks at the same step.
    """

    def __init__(
        self, model: nn.Module, context: RunContext, steps: int, process_group: ProcessGroup, seed: int
    ) -> None:
        """Join the replicas of all ranks; every rank must call this.

        Args:
            model: freshly built under the run's seed; its batch normalisations are replaced.
            context: recipe, device and precision.
            steps: of the whole training.
            process_group: the ranks.
            seed: of the run.
        """
        super().__init__(synchronise_batch_norms(model, process_group, context.device), context, steps)
        self.process_group, self._seed, self._steps_taken = process_group, seed, 0
        self._batch_size = whole_batch(context.recipe, context.dataset)
        self._pending_stop: tuple[Tensor, torch.cuda.Event] | None = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # its new name is not in all torch versions that are allowed
            # Running statistics are the same on all ranks without a broadcast.
            self._replica = DistributedDataParallel(self._model, broadcast_buffers=False)

    def begin_epoch(self) -> None:
        """Set the replica to training mode."""
        self._replica.train()

    def step(self, batches: Sequence[Batch]) -> Tensor:
        """Take one SGD step with all ranks.

        Args:
            batches: this rank's share of the batch.

        Returns:
            (1, 2): loss and accuracy of the whole batch, on the device.
        """
        ((x, y),) = batches
        torch.manual_seed((self._seed * 1_000_003 + self._schedule.last_epoch) * 4096 + self.process_group.rank)
        self._optimizer.zero_grad(set_to_none=True)
        with self._context.autocast():
            logits = self._replica(x)
            smoothing = self._context.recipe.label_smoothing
            loss = F.cross_entropy(logits.float(), y, label_smoothing=smoothing, reduction="sum") / self._batch_size
        # DDP averages gradients over the ranks; scaled so, the average is their sum.
        (loss * self.process_group.size).backward()
        self._optimizer.step()
        self._schedule.step()
        right = (logits.argmax(1) == y).sum() / self._batch_size
        stop = torch.full_like(right, float(stop_signal.received()))
        totals = self.process_group.all_reduce(torch.stack([loss.detach(), right, stop]))
        self._confirm_stop(totals[2])
        return totals[:2].unsqueeze(0)

    def _confirm_stop(self, ranks_stopping: Tensor) -> None:
        """Confirm a stop signal that any rank has received, at a step that is the same on all ranks.

        Args:
            ranks_stopping: how many have received one, on the device.
        """
        self._steps_taken += 1
        if not ranks_stopping.is_cuda:
            if ranks_stopping > 0:
                stop_signal.confirm()
        elif self._steps_taken % STOP_CHECK_STEPS == 0:
            if self._pending_stop is not None:
                earlier, arrived = self._pending_stop
                arrived.synchronize()  # no wait: the copy was started many steps ago
                if earlier > 0:
                    stop_signal.confirm()
            event = torch.cuda.Event()
            self._pending_stop = ranks_stopping.to("cpu", non_blocking=True), event
            event.record()


def whole_batch(recipe: Recipe, dataset: Dataset) -> int:
    """Return the number of images of a step, on all ranks together."""
    return min(recipe.batch_size, len(dataset.train.labels))


@dataclass(frozen=True)
class SharedRun(Run):
    """Run whose folder rank 0 alone reads and writes; it broadcasts what it reads.

    The checkpoint is that of one process and does not depend on the number of ranks: any number continues from it.
    """

    process_group: ProcessGroup = SINGLE_PROCESS

    @classmethod
    def shared(cls, run: Run, process_group: ProcessGroup) -> SharedRun:
        """Return the same run, shared by a process group."""
        return cls(run.variant, run.config, run.folder, run.lease, process_group)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Return the checkpoint that rank 0 has read."""
        return self.process_group.broadcast(super().load_checkpoint() if self.process_group.rank == 0 else None)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write the checkpoint on rank 0."""
        if self.process_group.rank == 0:
            super().save_checkpoint(state)

    def write_metrics(self, epochs: list[dict[str, float]]) -> None:
        """Write the metrics on rank 0."""
        if self.process_group.rank == 0:
            super().write_metrics(epochs)

    def add_metrics(self, epoch: dict[str, float]) -> None:
        """Write the metrics on rank 0."""
        if self.process_group.rank == 0:
            super().add_metrics(epoch)
