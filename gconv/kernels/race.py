"""Several ways of computing one thing, timed in turn until it is certain which is fastest.

Ways take turns, round by round, so that a drifting machine treats them alike; each round begins with another way. What
is clearly slower than the fastest drops out, so that most of the time goes to those that are close.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch

from gconv.kernels.machine import synchronize

SHORT_S = 1e-3  # what takes less is repeated within one measurement, so that the clock does not matter
OFTEN = 1000  # times, at most
HOPELESS = 2.0  # times the fastest, before the first round
SLOWER = 1.1  # times the fastest, in the median of the rounds
ALIKE = 1.02  # ratios up to this one do not matter
FEW, SOME, MOST = 3, 5, 11  # rounds: before a way drops out, before close ways count as ordered, in all
MOSTLY = 0.8  # of the rounds

Call = Callable[[], object]


@dataclass(frozen=True)
class Race:
    """How it ended.

    Attributes:
        seconds: of one call of each way, the median of its rounds.
        rounds: how often each was timed.
        failed: ways that raised an error, and which.
        certain: whether it is known which is fastest, or that the fastest are alike; else time was up.
    """

    seconds: dict[str, float]
    rounds: dict[str, int]
    failed: dict[str, str]
    certain: bool


def race(
    calls: Mapping[str, Call],
    device: torch.device,
    until: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> Race:
    """Time ways of computing one thing.

    Args:
        calls: by name.
        device: waited for before the clock is read.
        until: time of the clock at which it ends, certain or not; every way is called twice whatever the time.
        clock: seconds.
    """

    def seconds_of(call: Call, times: int) -> float:
        synchronize(device)
        start = clock()
        for _ in range(times):
            call()
        synchronize(device)
        return (clock() - start) / times

    first, failed = {}, {}
    for name, call in calls.items():
        try:
            seconds_of(call, 1)  # what is made once is made here
            first[name] = seconds_of(call, 1)
        except RuntimeError as error:  # too little memory, a compiler that fails
            failed[name] = " ".join(str(error).split())
    best = min(first.values(), default=0.0)
    for name in [name for name, t in first.items() if t > HOPELESS * best]:  # it may have been disturbed
        first[name] = min(first[name], seconds_of(calls[name], 1))
    times = {name: round(SHORT_S / min(max(t, SHORT_S / OFTEN), SHORT_S)) for name, t in first.items()}
    running = [name for name, t in first.items() if t <= HOPELESS * best]
    found: dict[str, list[float]] = {name: [] for name in running}
    certain = len(running) <= 1
    for turn in range(MOST):
        if not running or clock() >= until:
            break
        start = turn % len(running)
        for name in running[start:] + running[:start]:
            found[name].append(seconds_of(calls[name], times[name]))
        running = _still_running({name: found[name] for name in running})
        certain = _is_certain({name: found[name] for name in running})
        if turn + 1 >= FEW and certain:
            break
    seconds = {name: median(found[name]) if found.get(name) else t for name, t in first.items()}
    return Race(seconds, {name: len(found.get(name, ())) for name in first}, failed, certain)


def _still_running(found: dict[str, list[float]]) -> list[str]:
    """Ways that may yet be the fastest: none that is clearly slower."""
    rounds, leader = _leader(found)
    if rounds < FEW:
        return list(found)
    ratios = {name: _ratios(times, found[leader]) for name, times in found.items()}
    return [name for name, each in ratios.items() if median(each) <= SLOWER or min(each) <= 1]


def _is_certain(found: dict[str, list[float]]) -> bool:
    """Whether every way but the fastest is slower in most rounds, or so close that it does not matter."""
    rounds, leader = _leader(found)
    if len(found) == 1:
        return True
    if rounds < SOME:
        return False
    ratios = [_ratios(times, found[leader]) for name, times in found.items() if name != leader]
    return all(median(each) < ALIKE or sum(r > 1 for r in each) >= MOSTLY * rounds for each in ratios)


def _leader(found: dict[str, list[float]]) -> tuple[int, str]:
    """Rounds so far, and the fastest way."""
    return min(map(len, found.values())), min(found, key=lambda name: median(found[name]))


def _ratios(times: list[float], others: list[float]) -> list[float]:
    """Of the rounds that two ways share."""
    return [mine / other for mine, other in zip(times, others, strict=True)]
