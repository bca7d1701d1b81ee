"""Loss and accuracy on the test images."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from experiments.out_of_memory import is_out_of_memory
from experiments.training.process_group import SINGLE_PROCESS, ProcessGroup
from experiments.training.run_context import RunContext

EVALUATION_BATCH = 512  # images


@torch.no_grad()
def evaluate(
    model: nn.Module,
    context: RunContext,
    after_batch: Callable[[], None] = lambda: None,
    process_group: ProcessGroup = SINGLE_PROCESS,
    batch: int = EVALUATION_BATCH,
) -> dict[str, float]:
    """Return ``test_loss`` and ``test_accuracy``, the means over all test images.

    Args:
        model: on the device of the context; it is left in evaluation mode.
        context: test images, views and precision.
        after_batch: called after each batch.
        process_group: processes, each of which evaluates its share of the images.
        batch: images evaluated at once; halved where memory is short.
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
    return evaluate(model, context, after_batch, process_group, batch // 2)
