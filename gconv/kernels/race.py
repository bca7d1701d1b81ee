"""Race of several functions with the same result, timed in turn until the fastest is certain.

The functions run in turn, round by round, so that slow drifts of the machine affect all of them equally; each round
begins with another one. A function that is clearly slower drops out, so that most of the time goes to close ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch

from gconv.kernels.machine import synchronize

SHORT_S = 1e-3  # a shorter call is repeated within one measurement, because of the resolution of the clock
MAX_REPEATS = 1000
MAX_FIRST_RATIO = 2.0  # first time relative to the fastest; slower functions take part in no round
DROP_RATIO = 1.1  # median time relative to the fastest; slower functions drop out
EQUAL_RATIO = 1.02  # smaller ratios are irrelevant
ROUNDS_TO_DROP, ROUNDS_TO_ORDER, MAX_ROUNDS = 3, 5, 11
MIN_SHARE_SLOWER = 0.8  # of the rounds

Call = Callable[[], object]


@dataclass(frozen=True)
class Race:
    """Result of a race.

    Attributes:
        seconds: seconds of one call of each function: the median of its rounds.
        rounds: number of rounds of each.
        failed: functions that raised an error, and the error.
        certain: whether the fastest is certain, or the fastest are equal; False if the time was over.
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
    """Time functions with the same result and return the result of the race.

    Args:
        calls: functions by name.
        device: synchronised before the clock is read.
        until: time of the clock at which the race ends; every function is called twice in any case.
        clock: returns seconds.
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
            seconds_of(call, 1)  # one-time work happens here
            first[name] = seconds_of(call, 1)
        except RuntimeError as error:  # too little memory, a compiler that fails
            failed[name] = " ".join(str(error).split())
    best = min(first.values(), default=0.0)
    for name in [name for name, t in first.items() if t > MAX_FIRST_RATIO * best]:  # it may have been disturbed
        first[name] = min(first[name], seconds_of(calls[name], 1))
    times = {name: round(SHORT_S / min(max(t, SHORT_S / MAX_REPEATS), SHORT_S)) for name, t in first.items()}
    running = [name for name, t in first.items() if t <= MAX_FIRST_RATIO * best]
    seconds_by_name: dict[str, list[float]] = {name: [] for name in running}
    certain = len(running) <= 1
    for turn in range(MAX_ROUNDS):
        if not running or clock() >= until:
            break
        for name in order_of_round(running, turn):
            seconds_by_name[name].append(seconds_of(calls[name], times[name]))
        running = _still_running({name: seconds_by_name[name] for name in running})
        certain = _is_certain({name: seconds_by_name[name] for name in running})
        if turn + 1 >= ROUNDS_TO_DROP and certain:
            break
    seconds = {name: median(seconds_by_name[name]) if seconds_by_name.get(name) else t for name, t in first.items()}
    return Race(seconds, {name: len(seconds_by_name.get(name, ())) for name in first}, failed, certain)


def order_of_round(names: list[str], turn: int) -> list[str]:
    """Return the names in the order of a round, so that none always follows the same one, and finds its memory."""
    start = turn % len(names)
    order = names[start:] + names[:start]
    return order[::-1] if turn % 2 else order


def _still_running(seconds: dict[str, list[float]]) -> list[str]:
    """Return the functions that are not clearly slower than the fastest."""
    rounds, leader = _leader(seconds)
    if rounds < ROUNDS_TO_DROP:
        return list(seconds)
    ratios = {name: _ratios(times, seconds[leader]) for name, times in seconds.items()}
    return [name for name, each in ratios.items() if median(each) <= DROP_RATIO or min(each) <= 1]


def _is_certain(seconds: dict[str, list[float]]) -> bool:
    """Return True if every other function is slower in most rounds, or so close that the difference is irrelevant."""
    rounds, leader = _leader(seconds)
    if len(seconds) == 1:
        return True
    if rounds < ROUNDS_TO_ORDER:
        return False
    ratios = [_ratios(times, seconds[leader]) for name, times in seconds.items() if name != leader]
    return all(median(each) < EQUAL_RATIO or sum(r > 1 for r in each) >= MIN_SHARE_SLOWER * rounds for each in ratios)


def _leader(seconds: dict[str, list[float]]) -> tuple[int, str]:
    """Return the number of rounds so far, and the fastest function."""
    return min(map(len, seconds.values())), min(seconds, key=lambda name: median(seconds[name]))


def _ratios(times: list[float], others: list[float]) -> list[float]:
    """Return the ratios of times in the rounds that two functions share."""
    return [mine / other for mine, other in zip(times, others, strict=True)]
