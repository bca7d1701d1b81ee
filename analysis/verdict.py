"""One part of a claim: the evidence of its effects over seeds, for the claim and against it.

The rule itself is in ``analysis.claims``; this module has its p values, intervals and numbers of seeds.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from analysis.effects import Effect, Metric
from analysis.stats import EXACT_SEEDS, SignFlips, proportion_interval, seeds_needed

Direction = Literal["greater", "less", "within", "no_greater"]
Verdict = Literal["supported", "contradicted", "inconclusive", "not run", "holds by construction"]

ALPHA = 0.05
POWER = 0.8
FEWEST_SEEDS = seeds_needed(ALPHA)  # 6: with fewer, not even six differences of one sign would be remarkable
MOST_SEEDS = 1000
MOST_LOST = 0.25  # share of the seeds; with more of them lost, the rest is no sample


@dataclass(frozen=True)
class Test:
    """One part of a claim.

    Attributes:
        metric: how the effect is computed.
        direction: the claimed direction of the effect. ``within``: the effect exceeds the margin on neither side;
            ``no_greater``: it does not exceed the margin upwards.
        matters: the smallest effect of interest, or the margin, as a distance from ``than``; above 0.
        than: the value that means no effect.
        construction: why training cannot change the part; empty if it can.
        spread: standard deviation of the effect over seeds, from a pilot; None without a pilot.
    """

    metric: Metric
    direction: Direction
    matters: float
    than: float = 0.0
    construction: str = ""
    spread: float | None = None

    __test__ = False  # pytest, this is no test of the code


@dataclass(frozen=True)
class Part:
    """The result for one part of a claim.

    Attributes:
        test: the part.
        effect: mean of the effect over seeds; or the count or timing.
        low, high: ends of its 95% interval, or bounds of a count or timing; None without either.
        n: number of seeds that have a value; None if the part is not per seed.
        lost: number of further seeds of which a run was lost.
        support: p of "the claim is wrong": small if the data speak for the claim. None if it was not tested.
        oppose: p of "the claim is right": small if the data speak against the claim. None if it was not tested.
        decided: the verdict of a count or a timing, which has no p; or "inconclusive" if nothing can be decided.
        spread: standard deviation over seeds; None for fewer than two seeds, equal values, or a share.
        note: limits of the verdict, in plain words.
    """

    test: Test
    effect: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    lost: int = 0
    support: float | None = None
    oppose: float | None = None
    decided: Verdict | None = None
    spread: float | None = None
    note: str = ""


def weigh(effect: Effect, test: Test) -> Part:
    """Weigh an effect for and against a part of a claim, before any correction for several parts or claims."""
    if effect.low is not None and effect.high is not None:
        decided = interval_verdict(effect.low, effect.high, test)
        return Part(test, float(effect.values[0]), effect.low, effect.high, decided=decided, note=effect.note)
    x, lost = effect.values, effect.lost
    n, share = len(x), test.metric.kind == "share"
    spread = float(x.std(ddof=1)) if n > 1 else 0.0
    seeds = f"{n} seed{'s' if n > 1 else ''}"
    equal = not share and spread <= 1e-12 * np.abs(x).max()
    reasons = {
        f"{seeds}: at least {FEWEST_SEEDS} are needed": n < FEWEST_SEEDS,
        f"{lost} of {n + lost} seeds lost: at most a quarter may be": lost > MOST_LOST * (n + lost),
        f"all {n} values equal: no interval, no test": equal and n > 1,
    }
    notes = [reason for reason, is_so in reasons.items() if is_so]
    bounds = None if equal else _Share.of(x, lost) if share else _Mean.of(x, lost)
    low, high = (None, None) if bounds is None or n < 2 else bounds.interval()
    support = oppose = None
    if not notes and bounds is not None:
        support, oppose = _two_sides(bounds, test)
    return Part(
        test,
        float(x.mean()),
        low,
        high,
        n,
        lost,
        support,
        oppose,
        "inconclusive" if notes else None,
        None if equal or share or n < 2 else spread,
        "; ".join(filter(None, [*notes, effect.note])),
    )


def interval_verdict(low: float, high: float, test: Test) -> Verdict:
    """Return the verdict on a count or a timing, from the ends of its interval."""
    low, high = low - test.than, high - test.than
    if test.direction == "within":
        inside, outside = -test.matters < low and high < test.matters, low > test.matters or high < -test.matters
        return "supported" if inside else "contradicted" if outside else "inconclusive"
    if test.direction == "no_greater":
        return "supported" if high < test.matters else "contradicted" if low > 0 else "inconclusive"
    if test.direction == "less":
        low, high = -high, -low
    return "contradicted" if high < test.matters else "supported" if low > 0 else "inconclusive"


def seeds_to_find(test: Test, spread: float | None, p: float = ALPHA / 2) -> int | None:
    """Return the fewest seeds with which the smallest effect of interest, or equality, is found with ``POWER``.

    Args:
        test: the part of the claim.
        spread: standard deviation of the effect over seeds; a share needs none.
        p: one-sided p that a verdict needs.

    Returns:
        The number of seeds; None without a spread, or if more than ``MOST_SEEDS`` are needed.
    """
    if test.metric.kind == "share":
        return _seeds_for_share(test.than, test.matters, p)
    if not test.metric.per_seed or spread is None:
        return None
    seeds = FEWEST_SEEDS + bisect_left(
        range(FEWEST_SEEDS, MOST_SEEDS + 1), True, key=lambda n: _power(n, test, spread, p) >= POWER
    )
    return seeds if seeds <= MOST_SEEDS else None


@dataclass(frozen=True)
class _Mean:
    """The mean of values over seeds: tests by all sign flips, or by Student's t for more than ``EXACT_SEEDS`` seeds.

    Attributes:
        worst, best: the values, with the smallest or the largest of them in place of each lost seed.
    """

    worst: NDArray[np.float64]
    best: NDArray[np.float64]

    @classmethod
    def of(cls, x: NDArray[np.float64], lost: int) -> _Mean:
        return cls(np.append(x, [x.min()] * lost), np.append(x, [x.max()] * lost))

    def interval(self) -> tuple[float | None, float | None]:
        if len(self.worst) > EXACT_SEEDS:
            half = float(special.stdtrit(len(self.worst) - 1, 1 - ALPHA / 2))
            return self._t_bound(self.worst, -half), self._t_bound(self.best, half)
        low, high = (SignFlips.of(x).interval(1 - ALPHA) for x in (self.worst, self.best))
        return (None, None) if low is None or high is None else (low[0], high[1])

    def p_above(self, centre: float) -> float:
        """Return the p of "the effect is no larger than this"."""
        if len(self.worst) > EXACT_SEEDS:
            return self._t_p(self.worst - centre)
        return SignFlips.of(self.worst).p_greater(centre)

    def p_below(self, centre: float) -> float:
        """Return the p of "the effect is no smaller than this"."""
        if len(self.best) > EXACT_SEEDS:
            return self._t_p(centre - self.best)
        return SignFlips.of(self.best).p_less(centre)

    @staticmethod
    def _t_bound(x: NDArray[np.float64], half: float) -> float:
        return float(x.mean() + half * x.std(ddof=1) / math.sqrt(len(x)))

    @staticmethod
    def _t_p(x: NDArray[np.float64]) -> float:
        return float(special.stdtr(len(x) - 1, -x.mean() * math.sqrt(len(x)) / x.std(ddof=1)))


@dataclass(frozen=True)
class _Share:
    """A share of seeds: exact binomial tests. A lost seed counts as 0 in ``low``, and as 1 in ``high``."""

    low: int
    high: int
    n: int

    @classmethod
    def of(cls, x: NDArray[np.float64], lost: int) -> _Share:
        return cls(int(x.sum()), int(x.sum()) + lost, len(x) + lost)

    def interval(self) -> tuple[float | None, float | None]:
        (low, _), (_, high) = (proportion_interval(k, self.n, level=1 - ALPHA) for k in (self.low, self.high))
        return low, high

    def p_above(self, centre: float) -> float:
        return float(stats.binom.sf(self.low - 1, self.n, centre))

    def p_below(self, centre: float) -> float:
        return float(stats.binom.cdf(self.high, self.n, centre))


def _two_sides(bounds: _Mean | _Share, test: Test) -> tuple[float, float]:
    """Return the p for the claim and the p against it.

    An effect may be there beyond doubt and too small beyond doubt: then only one of the two may decide.
    """
    nothing, edge = test.than, test.than + test.matters
    if test.direction == "within":
        other = test.than - test.matters
        support = max(bounds.p_above(other), bounds.p_below(edge))
        return support, min(bounds.p_above(edge), bounds.p_below(other))
    if test.direction == "no_greater":
        support, oppose = bounds.p_below(edge), bounds.p_above(nothing)
        return support, oppose if support > ALPHA / 2 else 1.0
    if test.direction == "greater":
        support, oppose = bounds.p_above(nothing), bounds.p_below(edge)
    else:
        support, oppose = bounds.p_below(nothing), bounds.p_above(test.than - test.matters)
    return support if oppose > ALPHA / 2 else 1.0, oppose


def _power(n: int, test: Test, spread: float, p: float) -> float:
    """Return the power of n seeds, for normal effects: of the noncentral t at the p that sign flips can reach.

    Of a direction: P(beyond nothing) − P(surely too small). Of equality, where the difference is 0: at least
    P(one side) + P(other side) − 1. No gain, where there is none, is found as a gain is.
    """
    flips = math.floor(p * 2.0**n + 1e-9) if n <= EXACT_SEEDS else None
    if flips == 0:
        return 0.0
    away = test.matters / spread
    if flips == 1:  # all seeds on one side
        reached = float(special.ndtr(away)) ** n
    elif away * math.sqrt(n) > 30:  # where the noncentral t overflows
        reached = 1.0
    else:
        level = p if flips is None else flips / 2.0**n
        reached = 1 - float(special.nctdtr(n - 1, away * math.sqrt(n), special.stdtrit(n - 1, 1 - level)))
    return 2 * reached - 1 if test.direction == "within" else reached - ALPHA / 2


@lru_cache
def _seeds_for_share(than: float, matters: float, p: float) -> int | None:
    """Return the fewest seeds with which a true share of ``than + matters`` is found with ``POWER``."""
    for n in range(FEWEST_SEEDS, MOST_SEEDS):
        k = np.arange(n + 1)
        significant = (stats.binom.sf(k - 1, n, than) <= p) & (stats.binom.cdf(k, n, than + matters) > ALPHA / 2)
        if stats.binom.pmf(k[significant], n, than + matters).sum() >= POWER:
            return n
    return None
