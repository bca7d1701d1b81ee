"""The number of seeds to train in lock-step on this device, measured on throw-away networks before the training.

On a CPU one seed at a time is always chosen. On two threads of a Xeon, four log-groups networks in lock-step (width 32,
batches of 64; dense, 4 groups, log:4) reached 0.72 to 0.89 of the speed of one after the other, three AlexNets 0.73 to
0.77 (``make bench-training``).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from experiments.out_of_memory import is_out_of_memory
from experiments.training.batches import EpochBatches
from experiments.training.learner import Learner
from experiments.training.multi_seed import MultiSeedLearner
from experiments.training.process_group import SINGLE_PROCESS
from experiments.training.run import choose_kernels
from experiments.training.run_context import RunContext
from experiments.training.wide_network import refusal

MIN_SPEEDUP = 1.1  # over one seed after the other, from which on lock-step is chosen
TIMED_STEPS, TIMED_BLOCKS = 8, 3  # steps of a block, and blocks of each way, in turn; one more block warms up
MAX_MEMORY_SHARE = 0.8  # of the free GPU memory


def choose_seeds_at_once(fresh: Callable[[], nn.Module], context: RunContext, most: int) -> tuple[int, float]:
    """Return the number of networks to train in lock-step, and its speedup over one after the other.

    Args:
        fresh: builds an untrained network.
        context: recipe, device and precision.
        most: upper bound of the number.
    """
    if most < 2 or context.device.type != "cuda" or refusal(fresh()) is not None:
        return 1, 1.0
    choose_kernels()
    return largest_worthwhile(lambda count: speedup(fresh, context, count), _that_fit(fresh, context, most))


def largest_worthwhile(speedup: Callable[[int], float], most: int) -> tuple[int, float]:
    """Return the first of ``most``, half of it, … that fits into memory and is faster, and its speedup; else 1, 1.0.

    Args:
        speedup: measures the speedup of a number of networks.
        most: number to begin with.
    """
    while most > 1:
        try:
            measured = speedup(most)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            measured = 0.0
        if measured >= MIN_SPEEDUP:
            return most, measured
        most //= 2
    return 1, 1.0


def speedup(fresh: Callable[[], nn.Module], context: RunContext, count: int) -> float:
    """Return how many times as fast ``count`` networks are in lock-step as one after the other, by whole steps."""
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
    """Return the seconds of a block of steps, with batches made as in training."""
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
    """Return how many networks fit into the memory of a GPU, judged by the peak of one."""
    device = context.device
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    _seconds(Learner(fresh(), context, max(context.steps, TIMED_STEPS)), context)
    needed = torch.cuda.max_memory_allocated(device) - before
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + unused
    return max(1, min(most, int(MAX_MEMORY_SHARE * free / needed)))
