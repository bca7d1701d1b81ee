"""The ledger of claims: from the long tables of the studies to verdicts.

One rule, ``RULE``, gives every verdict: ``judge`` is its only place. The training seed is the unit.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special, stats

from analysis.effects import Effect, Metric, NotMeasuredError, measure_effect
from analysis.stats import (
    EXACT_SEEDS,
    binomial_test,
    equivalence_test,
    holm,
    mean_interval,
    seeds_needed,
    sign_flip_test,
)

Direction = Literal["greater", "less", "within"]
Verdict = Literal["supported", "contradicted", "inconclusive", "not run"]

ALPHA = 0.05
POWER = 0.8
FEWEST_SEEDS = seeds_needed(ALPHA)  # 6: with fewer, not even six differences of one sign would be remarkable
MOST_SEEDS = 1000

RULE = f"""\
A claim names beforehand its effect, the direction, the value that stands for "nothing there" (0 unless it says another)
and the smallest effect of interest. The training seed is the unit; the interval is Student's t at 95% over seeds, or
Clopper and Pearson's for a share of seeds.

supported     the interval lies beyond "nothing" in the claimed direction, and reaches the smallest effect of interest
contradicted  the interval ends before the smallest effect of interest: what there is goes the other way, or is too
              small to matter
inconclusive  neither, or fewer than {FEWEST_SEEDS} seeds

A claim that two things are equal names a margin instead: supported if the interval lies within it (two one-sided
tests), contradicted if it lies outside. A claim of several parts is supported if all of them are, contradicted if one
is; the part that decides is shown. For normal differences a verdict is wrong in at most 2.5% of cases: "supported"
where there is nothing (or, of equality, where the difference is the margin), "contradicted" where the smallest effect
of interest is there.

p is twice the p of the claimed side, so that 0.05 is where the interval ends, since a claim may also turn out the wrong
way round. It is of Student's t (exact binomial for shares): the sign-flip test assumes less, but from 8 seeds its p
cannot fall below 0.0078, which nothing in a ledger of 27 would survive. Where the two disagree about 0.05, a note says
so (up to {EXACT_SEEDS} seeds, where it is exact).
"Holm" is p adjusted for all claims tested. "needs" is the number of seeds with which the smallest effect of interest,
or equality, would be found with a probability of {POWER:.0%}, given the spread over seeds seen so far.

Counts (parameters, MACs) have no chance in them: the rule takes the value itself as the interval. A timing has the
quartiles of its repeats, which cover its median with about 95% for 15 repeats; it holds for the machine named.
Neither has a p. Of several studies that could tell, the first with {FEWEST_SEEDS} seeds is taken, else the first that \
measured it.
"""


@dataclass(frozen=True)
class Test:
    """One part of a claim.

    Attributes:
        metric: how the effect is computed.
        direction: in which it is claimed; ``within``: that it is no larger than the margin, on either side.
        matters: the smallest effect of interest, or the margin, as a distance from ``than``; above 0.
        than: the effect if there is nothing there.
    """

    metric: Metric
    direction: Direction
    matters: float
    than: float = 0.0

    __test__ = False  # pytest, this is no test of the code


@dataclass(frozen=True)
class Claim:
    """One claim of the ledger.

    Attributes:
        number: its place.
        claim: what is claimed.
        source: by whom.
        against: the null that could explain it away.
        studies: that can tell, the best first.
        published: the published value; empty where there is none.
        tests: its parts, all of which must hold.
    """

    number: int
    claim: str
    source: str
    against: str
    studies: tuple[str, ...]
    published: str
    tests: tuple[Test, ...]


@dataclass(frozen=True)
class Record:
    """The measures of one study.

    Attributes:
        study: its name.
        place: where they were read, ``runs`` or ``results``.
        table: the long table.
        hardware: on which they were measured.
    """

    study: str
    place: str
    table: pd.DataFrame
    hardware: str


@dataclass(frozen=True)
class Finding:
    """What became of a claim or of a part of it.

    Attributes:
        verdict: by ``RULE``.
        effect, low, high: in the units of the effect; None where there is none.
        n: number of seeds; None where nothing is per seed.
        p: of the claimed direction, None where it was not tested.
        adjusted: p after Holm over the ledger.
        seeds: that would find the smallest effect of interest; None where that cannot be told, or is over
            ``MOST_SEEDS``.
        note: what the reader must know, in plain words.
        test: the part that decided.
        record: where it was found.
    """

    verdict: Verdict
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    p: float | None = None
    adjusted: float | None = None
    seeds: int | None = None
    note: str = ""
    test: Test | None = None
    record: Record | None = None


def judge(effect: Effect, test: Test) -> Finding:
    """Give the verdict on one part of a claim, by ``RULE``."""
    if effect.low is not None and effect.high is not None:
        value = float(effect.values[0])
        verdict = _verdict(effect.low, effect.high, test)
        return Finding(verdict, value, effect.low, effect.high, note=effect.note, test=test)
    x, n = effect.values, len(effect.values)
    share = test.metric.kind == "share"
    low, high, p, notes = (_share if share else _mean)(x, test)
    seeds = _seeds_for_share(test.than, test.matters) if share else _seeds_for_mean(x, test)
    few = n < FEWEST_SEEDS
    if few:
        notes.insert(0, f"{n} seed{'s' if n > 1 else ''}: at least {FEWEST_SEEDS} are needed")
    verdict = "inconclusive" if few or low is None or high is None else _verdict(low, high, test)
    if seeds is None and low is not None and n > 1:
        notes.append(f"needs more than {MOST_SEEDS} seeds")
    note = "; ".join(filter(None, [*notes, effect.note]))
    return Finding(verdict, float(x.mean()), low, high, n, None if few else p, None, seeds, note, test)


def find(claim: Claim, records: Sequence[Record]) -> Finding:
    """Give the verdict on a claim from the first record that can tell, ``records`` being in the order of its studies.

    A record with enough seeds goes before one with fewer, whatever they say.
    """
    findings = [_on_record(claim, record) for record in records]
    able = [finding for finding in findings if finding.verdict != "not run"]
    enough = [finding for finding in able if finding.n is None or finding.n >= FEWEST_SEEDS]
    if enough or able or findings:
        return (enough or able or findings)[0]
    return Finding("not run", note=f"{' or '.join(claim.studies)} has not been run")


def adjust(findings: Sequence[Finding]) -> list[Finding]:
    """The same findings with their p adjusted for the whole ledger; what was not tested is no part of the family."""
    adjusted = holm([finding.p for finding in findings])
    return [
        finding if np.isnan(p) else replace(finding, adjusted=float(p))
        for finding, p in zip(findings, adjusted, strict=True)
    ]


def combine(parts: Sequence[Finding]) -> Finding:
    """The verdict on a claim whose parts must all hold: that of the part that decides.

    The largest p of all parts is a p of "not all of them hold" (intersection–union, Berger 1982): nothing is adjusted.
    """
    order = ("contradicted", "not run", "inconclusive", "supported")
    weakest = min(parts, key=lambda part: (order.index(part.verdict), -(part.p if part.p is not None else -1)))
    seeds = [part.n for part in parts if part.n is not None]
    tested = [part.p for part in parts if part.p is not None]
    whole = all(part.verdict != "not run" and (part.p is not None or part.n is None) for part in parts)
    number = f"part {list(parts).index(weakest) + 1} of {len(parts)} decides" if len(parts) > 1 else ""
    return replace(
        weakest,
        n=weakest.n if weakest.n is not None else min(seeds, default=None),
        p=max(tested) if tested and whole else None,
        note="; ".join(filter(None, (number, weakest.note))),
    )


def _on_record(claim: Claim, record: Record) -> Finding:
    parts = []
    for test in claim.tests:
        try:
            parts.append(judge(measure_effect(record.table, test.metric), test))
        except NotMeasuredError as error:
            note = f"{record.place}/{record.study}: {error}"
            parts.append(Finding("not run", note=note, test=test))
    return replace(combine(parts), record=record)


def _verdict(low: float, high: float, test: Test) -> Verdict:
    """The rule, on an interval."""
    low, high = low - test.than, high - test.than
    if test.direction == "within":
        inside, outside = -test.matters < low and high < test.matters, low > test.matters or high < -test.matters
        return "supported" if inside else "contradicted" if outside else "inconclusive"
    if test.direction == "less":
        low, high = -high, -low
    return "contradicted" if high < test.matters else "supported" if low > 0 else "inconclusive"


Bounds = tuple[float | None, float | None, float | None, list[str]]


def _mean(x: NDArray[np.float64], test: Test) -> Bounds:
    """Interval, p and notes of a mean over seeds."""
    spread = float(x.std(ddof=1)) if len(x) > 1 else 0.0
    if spread <= 1e-12 * np.abs(x).max():
        return None, None, None, [f"all {len(x)} values equal: no interval, no test"] if len(x) > 1 else []
    if test.direction == "within":
        found = equivalence_test(x - test.than, test.matters, ALPHA / 2)
        assert found.low is not None and found.high is not None and found.p is not None
        return found.low + test.than, found.high + test.than, min(1.0, 2 * found.p), []
    interval = mean_interval(x, 1 - ALPHA)
    towards = (x - test.than) * (1 if test.direction == "greater" else -1)
    p = min(1.0, 2 * float(special.stdtr(len(x) - 1, -towards.mean() * math.sqrt(len(x)) / spread)))
    notes = []
    if FEWEST_SEEDS <= len(x) <= EXACT_SEEDS:
        flipped = sign_flip_test(towards, "greater").p
        assert flipped is not None
        if (2 * flipped <= ALPHA) != (p <= ALPHA):
            notes = [f"signs flipped: p = {min(1.0, 2 * flipped):.2g}"]
    return interval.low, interval.high, p, notes


def _share(x: NDArray[np.float64], test: Test) -> Bounds:
    """Interval, p and notes of a share of seeds."""
    found = binomial_test(int(x.sum()), len(x), test.than, "greater", 1 - ALPHA)
    assert found.p is not None
    return found.low, found.high, min(1.0, 2 * found.p), []


def _seeds_for_mean(x: NDArray[np.float64], test: Test) -> int | None:
    """The fewest seeds with which the smallest effect of interest is found with ``POWER``, by the noncentral t.

    For a direction: P(interval beyond nothing) − P(interval ends before the effect of interest). For equality, where
    the difference is 0: at least P(one side) + P(other side) − 1.
    """
    if len(x) < 2 or (spread := float(x.std(ddof=1))) <= 1e-12 * np.abs(x).max():
        return None

    def has_power(n: int) -> bool:
        away = test.matters * math.sqrt(n) / spread
        if away > 30:  # where the noncentral t overflows
            return True
        reached = 1 - float(special.nctdtr(n - 1, away, special.stdtrit(n - 1, 1 - ALPHA / 2)))
        return (2 * reached - 1 if test.direction == "within" else reached - ALPHA / 2) >= POWER

    seeds = FEWEST_SEEDS + bisect_left(range(FEWEST_SEEDS, MOST_SEEDS + 1), True, key=has_power)
    return seeds if seeds <= MOST_SEEDS else None


@lru_cache
def _seeds_for_share(than: float, matters: float) -> int | None:
    """The fewest seeds with which a true share of ``than + matters`` is found with ``POWER``."""
    test = Test(Metric("share", ()), "greater", matters, than)
    for n in range(FEWEST_SEEDS, 200):
        found = 0.0
        for k in range(n, -1, -1):
            interval = binomial_test(k, n, than, "greater", 1 - ALPHA)
            assert interval.low is not None and interval.high is not None
            if interval.low <= than:
                break
            if _verdict(interval.low, interval.high, test) == "supported":
                found += float(stats.binom.pmf(k, n, than + matters))
        if found >= POWER:
            return n
    return None
