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
from experiments.training.crew import ALONE
from experiments.training.epoch import Stream
from experiments.training.learner import Learner
from experiments.training.run import choose_kernels
from experiments.training.seeds import Stack
from experiments.training.setting import Setting
from experiments.training.wide_network import refusal

FASTER = 1.1  # times the pace of one after the other, from which on several at once are worth it
STEPS, BLOCKS = 8, 3  # timed of each way, in turn; the first block warms up
SHARE = 0.8  # of the free memory, that networks at once may take


def how_many(fresh: Callable[[], nn.Module], setting: Setting, most: int) -> tuple[int, float]:
    """How many networks to train at once, at most so many, and how many times the pace of one after the other that is.

    Args:
        fresh: builds an untrained network.
        setting: what it is trained with.
        most: how many there are to train.
    """
    if most < 2 or setting.device.type != "cuda" or refusal(fresh()) is not None:
        return 1, 1.0
    choose_kernels()
    return quickest(lambda count: pace(fresh, setting, count), _that_fit(fresh, setting, most))


def quickest(pace: Callable[[int], float], most: int) -> tuple[int, float]:
    """The first of ``most``, half of it, … that fits and is worth it, and its pace; else 1."""
    while most > 1:
        try:
            found = pace(most)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            found = 0.0
        if found >= FASTER:
            return most, found
        most //= 2
    return 1, 1.0


def pace(fresh: Callable[[], nn.Module], setting: Setting, count: int) -> float:
    """How many times as fast ``count`` networks are at once as one after the other: whole steps, block by block."""
    steps = max(setting.steps, 2 * STEPS * (BLOCKS + 1))
    alone = Learner(fresh(), setting, steps)
    several = Stack([fresh() for _ in range(count)], setting, steps)
    best = {alone: float("inf"), several: float("inf")}
    for block in range(BLOCKS + 1):
        for learner in best:
            taken = _seconds(learner, setting)
            if block:
                best[learner] = min(best[learner], taken)
    return count * best[alone] / best[several]


def _seconds(learner: Learner, setting: Setting) -> float:
    """Of a block of steps, batches made as in training."""
    streams = [Stream(setting, seed, 0) for seed in range(len(learner.networks))]
    learner.begin_epoch(0)
    _wait(setting)
    start = time.perf_counter()
    for step in range(STEPS):
        learner.step([stream.batch(1 + step % len(stream), ALONE) for stream in streams])
    _wait(setting)
    return time.perf_counter() - start


def _wait(setting: Setting) -> None:
    if setting.device.type == "cuda":
        torch.cuda.synchronize(setting.device)


def _that_fit(fresh: Callable[[], nn.Module], setting: Setting, most: int) -> int:
    """How many fit into the memory of a GPU, as far as one tells."""
    device = setting.device
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    _seconds(Learner(fresh(), setting, max(setting.steps, STEPS)), setting)
    needed = torch.cuda.max_memory_allocated(device) - before
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + unused
    return max(1, min(most, int(SHARE * free / needed)))
