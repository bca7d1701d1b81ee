"""The race of kernels, against a clock that only the calls move."""

import itertools
from collections import Counter

import pytest
import torch

from gconv.kernels import race as racing
from gconv.kernels.race import race

CPU = torch.device("cpu")


class Clock:
    """Seconds that pass only where a test says so."""

    def __init__(self):
        self.now = 0.0
        self.calls = []

    def __call__(self):
        return self.now

    def way(self, name, seconds):
        """A call that takes the next of some seconds, over and over."""
        each = itertools.cycle(seconds if isinstance(seconds, list) else [seconds])

        def call():
            self.calls.append(name)
            self.now += next(each)

        return call

    def race(self, until=float("inf"), **ways):
        return race({name: self.way(name, seconds) for name, seconds in ways.items()}, CPU, until, self)


def test_what_is_far_slower_is_never_timed_in_a_round():
    result = Clock().race(fast=1.0, slow=2.5)
    assert result.seconds == pytest.approx({"fast": 1.0, "slow": 2.5})
    assert result.rounds == {"fast": racing.ROUNDS_TO_DROP, "slow": 0}
    assert result.certain


def test_one_disturbed_measurement_drops_nobody():
    """Warm-up, a disturbed call, the call that is made again."""
    result = Clock().race(fast=1.0, disturbed=[0.5, 5.0, 0.5, 0.5, 0.5])
    assert min(result.seconds, key=result.seconds.get) == "disturbed"
    assert result.rounds["disturbed"] >= racing.ROUNDS_TO_DROP


def test_what_is_clearly_slower_drops_out_after_a_few_rounds():
    result = Clock().race(fast=1.0, slower=1.5, close=1.05)
    assert result.rounds == {
        "fast": racing.ROUNDS_TO_ORDER,
        "slower": racing.ROUNDS_TO_DROP,
        "close": racing.ROUNDS_TO_ORDER,
    }
    assert result.seconds == pytest.approx({"fast": 1.0, "slower": 1.5, "close": 1.05})
    assert result.certain


def test_alike_ways_are_not_timed_for_ever_and_changing_ones_as_long_as_allowed():
    assert Clock().race(one=1.0, other=1.01).rounds == {"one": racing.ROUNDS_TO_ORDER, "other": racing.ROUNDS_TO_ORDER}
    clock = Clock()
    result = clock.race(one=[1.0, 1.0, 1.2, 0.9, 1.1], other=[1.05, 1.05, 0.9, 1.2, 1.15, 1.0, 1.1])
    assert set(result.rounds.values()) == {racing.MAX_ROUNDS}


def test_it_ends_when_time_is_up_and_says_that_nothing_is_certain():
    clock = Clock()
    result = clock.race(until=7.0, one=1.0, other=1.3)
    assert clock.now == pytest.approx(2 * 2.3 + 2 * 2.3)  # two calls each whatever the time, then the rounds begun
    assert result.rounds == {"one": 2, "other": 2}
    assert not result.certain


def test_each_way_is_timed_after_every_other_equally_often(monkeypatch):
    """What a way leaves in the caches and in free memory is not always found by the same one."""
    monkeypatch.setattr(racing, "ROUNDS_TO_DROP", 6)
    clock = Clock()
    clock.race(a=1.0, b=1.05, c=1.08)
    rounds = [clock.calls[i : i + 3] for i in range(6, 24, 3)]
    assert {first for first, *_ in rounds} == {last for *_, last in rounds} == set("abc")
    pairs = Counter(pair for each in rounds for pair in itertools.pairwise(each))
    assert pairs == dict.fromkeys(itertools.permutations("abc", 2), 2)


def test_what_takes_no_time_is_repeated_within_a_measurement():
    clock = Clock()
    result = clock.race(one=racing.SHORT_S / 10, other=racing.SHORT_S / 5)
    assert clock.calls.count("one") == 2 + 10 * result.rounds["one"]
    assert result.seconds["one"] == pytest.approx(racing.SHORT_S / 10)


def test_a_way_that_fails_stops_no_other():
    clock = Clock()

    def fail():
        raise RuntimeError("out of\n memory")

    result = race({"one": clock.way("one", 1.0), "bad": fail}, CPU, clock=clock)
    assert result.seconds == {"one": 1.0}
    assert result.failed == {"bad": "out of memory"}
    assert race({"bad": fail}, CPU, clock=clock).seconds == {}
