"""One pass over the training images, and one over the test images.

Several runs may go through an epoch side by side, each with batches of its own. The host never waits for the device
within an epoch: losses are looked at when they have arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from experiments.errors import RunFailedError
from experiments.memory import is_out_of_memory
from experiments.store.progress import PartialEpoch
from experiments.tracking import Tracker
from experiments.training.learner import Batch, Learner
from experiments.training.process_group import SINGLE_PROCESS, ProcessGroup
from experiments.training.run_context import RunContext, epoch_generator

LOSS_CHECK_STEPS = 25  # steps between looks at the loss
EVALUATION_BATCH = 512


class DivergedError(RunFailedError):
    """The loss or a weight of a network is no longer finite.

    Attributes:
        place: of the network among those trained together.
    """

    def __init__(self, reason: str, place: int) -> None:
        super().__init__(reason)
        self.place = place


class EpochBatches:
    """The batches of one epoch of one run.

    Order and augmentation depend on (seed, epoch) alone, so that a resumed run sees the batches it would have seen.
    """

    def __init__(self, context: RunContext, seed: int, epoch: int, part: PartialEpoch | None = None) -> None:
        """Draw the order of the images.

        Args:
            context: images, views, recipe.
            seed, epoch: of the run.
            part: of the epoch, that was trained before.
        """
        recipe, count = context.recipe, len(context.dataset.train.labels)
        self._context, self.generator = context, epoch_generator(seed, epoch)
        batches = torch.randperm(count, generator=self.generator).split(recipe.batch_size)
        if len(batches) > 1 and len(batches[-1]) < recipe.batch_size:
            batches = batches[:-1]  # a short batch would have other batch statistics and another noise scale
        self._batches = batches
        self.done, self.total = 0, torch.zeros(2, device=context.device)
        if part is not None:
            self.done, self.total = part.step, part.total.to(context.device, copy=True)
            self.generator.set_state(part.generator)

    def __len__(self) -> int:
        return len(self._batches)

    def batch(self, step: int, process_group: ProcessGroup) -> Batch:
        """The next batch, that of a step counted from 1: this process's share of it."""
        index = self._batches[step - 1]
        return self._context.training_inputs(index, self.generator, process_group.share(len(index)))


class PendingLosses:
    """Losses and accuracies on their way from the device, and the step that they are from."""

    def __init__(self, step: int, rate: float, totals: Tensor) -> None:
        on_gpu = totals.is_cuda
        self.step, self.rate = step, rate
        self._totals = totals.to("cpu", non_blocking=on_gpu, copy=True)
        self._event = torch.cuda.Event() if on_gpu else None
        if self._event is not None:
            self._event.record()

    def arrived(self) -> bool:
        """Whether they can be read without waiting."""
        return self._event is None or self._event.query()

    def losses(self) -> list[float]:
        """Summed over the steps, of each run; waits until they have arrived."""
        if self._event is not None:
            self._event.synchronize()
        return self._totals[:, 0].tolist()


def train_epoch(
    learner: Learner,
    streams: Sequence[EpochBatches],
    epoch: int,
    title: str,
    after_step: Callable[[int, Tensor], None] = lambda *_: None,
    trackers: Sequence[Tracker] = (),
) -> list[dict[str, float]]:
    """Take the steps of one epoch; returns mean loss and accuracy of each run.

    Args:
        learner: takes the steps.
        streams: the batches of each run, all as many and equally far.
        epoch: counted from 0.
        title: of the progress bar.
        after_step: told the number of steps taken, and loss and accuracy summed over them (S, 2).
        trackers: told loss and rate at every look at the loss, one for each run; or none.

    Raises:
        DivergedError: a loss is no longer finite; told at the look after.
    """
    done, steps = streams[0].done, len(streams[0])
    totals = torch.stack([stream.total for stream in streams])
    alone, leads = learner.process_group.size == 1, learner.process_group.rank == 0
    looks: list[PendingLosses] = []
    learner.begin_epoch(epoch)
    before, seen = totals[:, 0].tolist(), done  # at the last look at the loss
    with tqdm(
        range(done + 1, steps + 1), title, steps, initial=done, disable=None if leads else True, leave=False
    ) as progress:
        for step in progress:
            totals += learner.step([stream.batch(step, learner.process_group) for stream in streams])
            after_step(step, totals)
            if step % LOSS_CHECK_STEPS == 1 or step == steps:
                looks.append(PendingLosses(step, learner.rate, totals))
            # Processes that train together look at the same steps, so that they stop at the same one.
            while looks and (len(looks) > 1 or step == steps or (alone and looks[0].arrived())):
                look = looks.pop(0)
                losses = look.losses()
                for place, loss in enumerate(losses):
                    if not loss < float("inf"):
                        reason = f"the loss became {loss / look.step} in epoch {epoch + 1}, step {look.step}"
                        raise DivergedError(reason, place)
                progress.set_postfix(loss=f"{sum(losses) / len(losses) / look.step:.3f}")
                for tracker, loss, earlier in zip(trackers, losses, before, strict=False):
                    lately = (loss - earlier) / (look.step - seen)
                    tracker.log_step(epoch * steps + look.step, {"loss": lately, "lr": look.rate})
                before, seen = losses, look.step
    return [{"train_loss": loss / steps, "train_accuracy": right / steps} for loss, right in totals.tolist()]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    context: RunContext,
    batch: int = EVALUATION_BATCH,
    after_batch: Callable[[], None] = lambda: None,
    process_group: ProcessGroup = SINGLE_PROCESS,
) -> dict[str, float]:
    """Loss and accuracy on the test images, ``batch`` at a time, or fewer where memory is short.

    Each process of a process group takes its share of the images.
    """
    model.eval()
    count = len(context.dataset.test.labels)
    total = torch.zeros(2, device=context.device)
    try:
        own = torch.arange(count)[process_group.share(count)]
        for index in own.split(batch) if len(own) else ():
            x, y = context.test_inputs(index)
            with context.autocast():
                logits = model(x).float()
            total += torch.stack([F.cross_entropy(logits, y, reduction="sum"), (logits.argmax(1) == y).sum()])
            after_batch()
    except (RuntimeError, MemoryError) as error:
        if batch == 1 or not is_out_of_memory(error):
            raise
    else:
        loss, right = process_group.all_reduce(total).tolist()
        return {"test_loss": loss / count, "test_accuracy": right / count}
    return evaluate(model, context, batch // 2, after_batch, process_group)
