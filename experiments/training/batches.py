"""The batches of one epoch, in the order that seed and epoch fix."""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.store.progress import PartialEpoch
from experiments.training.process_group import ProcessGroup
from experiments.training.run_context import RunContext, epoch_generator

Batch = tuple[Tensor, Tensor]  # inputs (N, 3, h, w), labels (N,)


class EpochBatches:
    """Batches of one epoch of one run.

    Order and augmentation depend on seed and epoch alone, so that a resumed run has the batches that it would have
    had without the interruption.

    Attributes:
        generator: random numbers of the epoch; its state is saved with a partial epoch.
        steps_done: steps of the epoch that an earlier process has taken.
        total: loss and accuracy summed over these steps, (2,).
    """

    def __init__(self, context: RunContext, seed: int, epoch: int, part: PartialEpoch | None = None) -> None:
        """Draw the order of the images.

        Args:
            context: images, views and recipe.
            seed: of the run.
            epoch: counted from 0.
            part: steps that were taken before an interruption, if any.
        """
        recipe, count = context.recipe, len(context.dataset.train.labels)
        self._context, self.generator = context, epoch_generator(seed, epoch)
        batches = torch.randperm(count, generator=self.generator).split(recipe.batch_size)
        if len(batches) > 1 and len(batches[-1]) < recipe.batch_size:
            batches = batches[:-1]  # a short batch would have other batch statistics and another noise scale
        self._batches = batches
        self.steps_done, self.total = 0, torch.zeros(2, device=context.device)
        if part is not None:
            self.steps_done, self.total = part.step, part.total.to(context.device, copy=True)
            self.generator.set_state(part.generator)

    def __len__(self) -> int:
        return len(self._batches)

    def batch(self, step: int, process_group: ProcessGroup) -> Batch:
        """Return this process's share of the batch of a step, counted from 1; steps must be asked for in order."""
        index = self._batches[step - 1]
        return self._context.training_inputs(index, self.generator, process_group.share(len(index)))
