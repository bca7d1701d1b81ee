"""How many seeds at once pay on this device: tried out on throw-away networks before anything is trained.

On a CPU nothing is tried, since there they do not: on two threads of a Xeon four log-groups networks at once (width 32,
batches of 64; dense, 4 groups, log:4) went at 0.72 to 0.89 of the pace of one after the other, three AlexNets at 0.73
to 0.77 (``make bench-training``).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from experiments.memory import is_out_of_memory
from experiments.training.batches import EpochBatches
from experiments.training.learner import Learner
from experiments.training.multi_seed import MultiSeedLearner
from experiments.training.process_group import SINGLE_PROCESS
from experiments.training.run import choose_kernels
from experiments.training.run_context import RunContext
from experiments.training.wide_network import refusal

MIN_SPEEDUP = 1.1  # times the pace of one after the other, from which on several at once are worth it
TIMED_STEPS, TIMED_BLOCKS = 8, 3  # timed of each way, in turn; the first block warms up
MAX_MEMORY_SHARE = 0.8  # of the free memory, that networks at once may take


def choose_seeds_at_once(fresh: Callable[[], nn.Module], context: RunContext, most: int) -> tuple[int, float]:
    """How many networks to train at once, at most so many, and how many times the pace of one after the other that is.

    Args:
        fresh: builds an untrained network.
        context: what it is trained with.
        most: how many there are to train.
    """
    if most < 2 or context.device.type != "cuda" or refusal(fresh()) is not None:
        return 1, 1.0
    choose_kernels()
    return largest_worthwhile(lambda count: speedup(fresh, context, count), _that_fit(fresh, context, most))


def largest_worthwhile(speedup: Callable[[int], float], most: int) -> tuple[int, float]:
    """The first of ``most``, half of it, … that fits and is worth it, and its pace; else 1."""
    while most > 1:
        try:
            found = speedup(most)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            found = 0.0
        if found >= MIN_SPEEDUP:
            return most, found
        most //= 2
    return 1, 1.0


def speedup(fresh: Callable[[], nn.Module], context: RunContext, count: int) -> float:
    """How many times as fast ``count`` networks are at once as one after the other: whole steps, block by block."""
    steps = max(context.steps, 2 * TIMED_STEPS * (TIMED_BLOCKS + 1))
    alone = Learner(fresh(), context, steps)
    several = MultiSeedLearner([fresh() for _ in range(count)], context, steps)
    best = {alone: float("inf"), several: float("inf")}
    for block in range(TIMED_BLOCKS + 1):
        for learner in best:
            taken = _seconds(learner, context)
            if block:
                best[learner] = min(best[learner], taken)
    return count * best[alone] / best[several]


def _seconds(learner: Learner, context: RunContext) -> float:
    """Of a block of steps, batches made as in training."""
    streams = [EpochBatches(context, seed, 0) for seed in range(len(learner.networks))]
    learner.begin_epoch()
    _wait(context)
    start = time.perf_counter()
    for step in range(TIMED_STEPS):
        learner.step([stream.batch(1 + step % len(stream), SINGLE_PROCESS) for stream in streams])
    _wait(context)
    return time.perf_counter() - start


def _wait(context: RunContext) -> None:
    if context.device.type == "cuda":
        torch.cuda.synchronize(context.device)


def _that_fit(fresh: Callable[[], nn.Module], context: RunContext, most: int) -> int:
    """How many fit into the memory of a GPU, as far as one tells."""
    device = context.device
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    _seconds(Learner(fresh(), context, max(context.steps, TIMED_STEPS)), context)
    needed = torch.cuda.max_memory_allocated(device) - before
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + unused
    return max(1, min(most, int(MAX_MEMORY_SHARE * free / needed)))
