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
from experiments.training.learner import Batch, Learner
from experiments.training.process_group import SINGLE_PROCESS, ProcessGroup
from experiments.training.recipe import Recipe
from experiments.training.run_context import RunContext
from experiments.training.sync_batch_norm import synchronise_batch_norms

STOP_CHECK_STEPS = (
    25  # steps between looks at whether a process was told to stop, where a look must not wait for the device
)


class DataParallelLearner(Learner):
    """One rank's replica of a network. A step is that of one process on the whole batch, up to rounding.

    Losses, gradients and statistics are over the whole batch. Dropout differs: every rank draws its own noise, which
    depends on seed, step and rank alone. A notice to any rank stops all of them at the same step.
    """

    def __init__(
        self, model: nn.Module, context: RunContext, steps: int, process_group: ProcessGroup, seed: int
    ) -> None:
        """Meet the replicas of the other ranks.

        Args:
            model: freshly built under the run's seed.
            context: what it is trained with.
            steps: in the whole training.
            process_group: the processes.
            seed: of the run.
        """
        super().__init__(synchronise_batch_norms(model, process_group, context.device), context, steps)
        self.process_group, self._seed, self._taken = process_group, seed, 0
        self._whole = whole_batch(context.recipe, context.dataset)
        self._asked: tuple[Tensor, torch.cuda.Event] | None = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # its new name is not in all torch versions that are allowed
            # Running statistics are the same on all ranks as they are.
            self._replica = DistributedDataParallel(self._model, broadcast_buffers=False)

    def begin_epoch(self, epoch: int) -> None:
        """Be ready to train, after an evaluation."""
        self._replica.train()

    def step(self, batches: Sequence[Batch]) -> Tensor:
        """Take a step with all ranks.

        Args:
            batches: this rank's share of a batch.

        Returns:
            (1, 2): loss and accuracy of the whole batch, on the device.
        """
        ((x, y),) = batches
        torch.manual_seed((self._seed * 1_000_003 + self._schedule.last_epoch) * 4096 + self.process_group.rank)
        self._optimizer.zero_grad(set_to_none=True)
        with self._context.autocast():
            logits = self._replica(x)
            smoothing = self._context.recipe.label_smoothing
            loss = F.cross_entropy(logits.float(), y, label_smoothing=smoothing, reduction="sum") / self._whole
        (
            loss * self.process_group.size
        ).backward()  # the mean over ranks, which gradients become, is then the sum of shares
        self._optimizer.step()
        self._schedule.step()
        right = (logits.argmax(1) == y).sum() / self._whole
        told = torch.full_like(right, float(stop_signal.received()))
        totals = self.process_group.all_reduce(torch.stack([loss.detach(), right, told]))
        self._agree(totals[2])
        return totals[:2].unsqueeze(0)

    def _agree(self, told: Tensor) -> None:
        """Stop where any rank was told to, at a step that is the same on all: they are never apart."""
        self._taken += 1
        if not told.is_cuda:
            if told > 0:
                stop_signal.confirm()
        elif self._taken % STOP_CHECK_STEPS == 0:
            if self._asked is not None:
                before, arrived = self._asked
                arrived.synchronize()  # long ago: it is the answer of the look before
                if before > 0:
                    stop_signal.confirm()
            event = torch.cuda.Event()
            self._asked = told.to("cpu", non_blocking=True), event
            event.record()


def whole_batch(recipe: Recipe, dataset: Dataset) -> int:
    """Images of a step, on all ranks together."""
    return min(recipe.batch_size, len(dataset.train.labels))


@dataclass(frozen=True)
class SharedRun(Run):
    """A run of which rank 0 alone reads and writes the folder; what it reads, all have.

    A checkpoint is that of one process and says nothing of ranks: any number of them goes on from it.
    """

    process_group: ProcessGroup = SINGLE_PROCESS

    @classmethod
    def shared(cls, run: Run, process_group: ProcessGroup) -> SharedRun:
        """The same run in the hands of a process group."""
        return cls(run.variant, run.config, run.folder, run.lease, process_group)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """That of rank 0."""
        return self.process_group.broadcast(super().load_checkpoint() if self.process_group.rank == 0 else None)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write it on rank 0."""
        if self.process_group.rank == 0:
            super().save_checkpoint(state)

    def write_metrics(self, epochs: list[dict[str, float]]) -> None:
        """Write them on rank 0."""
        if self.process_group.rank == 0:
            super().write_metrics(epochs)

    def add_metrics(self, epoch: dict[str, float]) -> None:
        """Write them on rank 0."""
        if self.process_group.rank == 0:
            super().add_metrics(epoch)
