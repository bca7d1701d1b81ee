"""Intervals, tests and false discovery rates.

The training seed is the unit of inference. A number that cannot be computed (an interval from one seed, a test of equal
values) is None, and a note gives the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

Side = Literal["two-sided", "greater", "less"]

EXACT_SEEDS = 16  # greatest number of seeds for which all 2^n sign flips are tried
EXACT_RELABELINGS = 20_000  # greatest number of distinct relabelings that are all tried
DRAWS = 9999  # number of random flips or relabelings otherwise


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its interval.

    Attributes:
        mean: mean of the values.
        low, high: ends of the interval; NaN for fewer than two values, because one run has no interval.
        n: number of values.
    """

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if self.n < 2:
            return f"{self.mean:.3f} (n = {self.n}, no interval)"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Inference:
    """The result of a test or of an interval.

    Attributes:
        value: value of the statistic.
        low, high: ends of the interval; None if there is none.
        n: number of values.
        p: p of the test; None if there was no test.
        note: limits of the result, in plain words; empty without any.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    p: float | None
    note: str = ""

    def __str__(self) -> str:
        interval = "" if self.low is None or self.high is None else f" [{self.low:.3g}, {self.high:.3g}]"
        p = "" if self.p is None else f", p = {self.p:.2g}"
        return f"{self.value:.3g}{interval}{p}, n = {self.n}" + (f" ({self.note})" if self.note else "")


def mean_interval(values: ArrayLike, level: float = 0.95) -> Estimate:
    """Return the mean with Student's t interval; the training seed is the unit.

    Raises:
        ValueError: no value, or a value that is not finite.
    """
    x = _finite(values)
    mean = float(x.mean())
    if x.size < 2:
        return Estimate(mean, math.nan, math.nan, int(x.size))
    half = float(stats.t.ppf((1 + level) / 2, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size))
    return Estimate(mean, mean - half, mean + half, int(x.size))


def proportion_interval(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Return the two-sided interval of a proportion of Clopper & Pearson (1934), from the quantiles of the beta.

    Raises:
        ValueError: no trial, or more successes than trials.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} successes of {trials} trials: 0 ≤ successes ≤ trials and a trial are needed")
    tail, failures = (1 - level) / 2, trials - successes
    low = special.betaincinv(successes, failures + 1, tail) if successes else 0.0
    high = special.betaincinv(successes + 1, failures, 1 - tail) if failures else 1.0
    return float(low), float(high)


def permutation_p(observed: float, null: ArrayLike) -> float:
    """Return the share of the null at least as large as the observed value, which is counted in.

    So p is never 0, and a test at level α is wrong at most α of the time (Phipson & Smyth 2010). Values within rounding
    of the observation count as ties; rounding is relative to the largest value, so that no unit changes p.

    Raises:
        ValueError: the observed value or a value of the null is NaN.
    """
    draws = np.asarray(null, dtype=np.float64)
    if math.isnan(observed):
        raise ValueError("observed value: NaN cannot be compared")
    if missing := np.count_nonzero(np.isnan(draws)):
        raise ValueError(f"{missing} of {draws.size} values of the null: NaN cannot be compared")
    tie = 1e-12 * float(np.abs(draws[np.isfinite(draws)]).max(initial=abs(observed)))
    return float((1 + np.count_nonzero(draws >= observed - tie)) / (1 + draws.size))


def null_p(observed: float, null: ArrayLike, side: Side) -> float:
    """Return ``permutation_p`` on one side: "greater" than the null, "less", or "two-sided" (the smaller p, doubled).

    Raises:
        ValueError: an unknown side, or a NaN.
    """
    draws = np.asarray(null, dtype=np.float64)
    greater, less = permutation_p(observed, draws), permutation_p(-observed, -draws)
    sides = {"greater": greater, "less": less, "two-sided": min(1.0, 2 * min(greater, less))}
    if side not in sides:
        raise ValueError(f"side {side!r}: must be one of {', '.join(sides)}")
    return sides[side]


def permuted_labels(labels: ArrayLike, permutations: int, seed: int) -> NDArray[np.int64]:
    """Return the labels in random orders, (permutations, n); every group keeps its size."""
    rng = np.random.default_rng(seed)
    return rng.permuted(np.tile(np.asarray(labels, dtype=np.int64), (permutations, 1)), axis=1)


def label_permutation_test(
    labels: ArrayLike,
    statistic: Callable[[NDArray[np.int64]], float],
    side: Side = "greater",
    seed: int = 0,
    permutations: int = DRAWS,
) -> Inference:
    """Test a statistic of the labels against labels permuted at random, every group keeping its size.

    All distinct orders of the labels are tried if there are at most ``EXACT_RELABELINGS``; else random ones.

    Args:
        labels: (n,) group of each item.
        statistic: function of labels (n,).
        side: side of the test; "two-sided" doubles the smaller p.
        seed: seed of the random orders.
        permutations: number of random orders.

    Raises:
        ValueError: no labels, or the statistic is not finite.
    """
    group = np.asarray(labels, dtype=np.int64)
    if group.ndim != 1 or group.size == 0:
        raise ValueError(f"labels of shape {group.shape}: must be one per item")
    sizes = np.unique(group, return_counts=True)[1]
    ways = math.factorial(group.size) // math.prod(math.factorial(int(size)) for size in sizes)
    if ways <= EXACT_RELABELINGS:
        relabelings = _all_relabelings(group)
        relabelings = relabelings[(relabelings != group).any(axis=1)]  # the observation counts by itself
    else:
        relabelings = permuted_labels(group, permutations, seed)
    values = np.array([statistic(row) for row in [group, *relabelings]], dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"groups of {sizes.tolist()} give a statistic of {values[~np.isfinite(values)][0]}")
    observed, null = float(values[0]), values[1:]
    p = null_p(observed, null, side)
    if len(sizes) < 2:
        note = "one group: nothing to permute"
    elif _constant(values):
        note = "the same under all labels: nothing to test"
    else:
        note = _floor_note((2 if side == "two-sided" else 1) / (1 + null.size))
    return Inference(observed, None, None, int(group.size), p, note)


@dataclass(frozen=True)
class SignFlips:
    """Sign-flip tests of a mean in either direction, and its interval.

    If the signs of a subset are flipped, the mean is at least as large as the observed one exactly if the mean of the
    subset is not positive. So p counts the subset means on the far side of a centre, and the interval of the test ends
    at two of the ordered subset means ("typical values", Hartigan 1969). The only assumption is that values are
    symmetric about their centre.

    Attributes:
        means: means of the non-empty subsets of the values, ascending; all 2^n − 1 for up to ``EXACT_SEEDS`` values,
            else ``DRAWS`` random ones.
        scale: the largest absolute value; rounding is relative to it.
    """

    means: NDArray[np.float64]
    scale: float

    @classmethod
    def of(cls, values: ArrayLike, seed: int = 0) -> SignFlips:
        """Return the subset means of (n,) values; ``seed`` is the seed of the random subsets."""
        x = _finite(values)
        return cls(_subset_means(x, seed), float(np.abs(x).max()))

    def p_greater(self, centre: float = 0.0) -> float:
        """Return the p of "the values lie about a centre no larger than this"."""
        far = np.searchsorted(self.means, centre + self._tie(centre), "right")
        return (1 + int(far)) / (1 + self.means.size)

    def p_less(self, centre: float = 0.0) -> float:
        """Return the p of "the values lie about a centre no smaller than this"."""
        far = self.means.size - np.searchsorted(self.means, centre - self._tie(centre), "left")
        return (1 + int(far)) / (1 + self.means.size)

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """Return the two-sided interval; None if there are too few values for this level."""
        left_out = math.floor((1 - level) / 2 * (1 + self.means.size) + 1e-9)  # of the ordered means, at either end
        return (float(self.means[left_out - 1]), float(self.means[-left_out])) if left_out else None

    def _tie(self, centre: float) -> float:
        return 1e-12 * max(self.scale, abs(centre))


def sign_flip_test(differences: ArrayLike, side: Side = "two-sided", level: float = 0.95, seed: int = 0) -> Inference:
    """Test if the mean of paired differences is zero, by flipping their signs. See ``SignFlips``.

    Args:
        differences: (n,) one difference per seed.
        side: side of the test; "two-sided" doubles the smaller p.
        level: level of the two-sided interval, which n seeds have if ``smallest_p(n)`` ≤ 1 − level.
        seed: seed of the random flips.

    Raises:
        ValueError: no value, or a value that is not finite; an unknown side.
    """
    x = _finite(differences)
    flips = SignFlips.of(x, seed)
    greater, less = flips.p_greater(), flips.p_less()
    sides = {"greater": greater, "less": less, "two-sided": min(1.0, 2 * min(greater, less))}
    if side not in sides:
        raise ValueError(f"side {side!r}: must be one of {', '.join(sides)}")
    zeros = int(np.count_nonzero(x == 0))  # which no flip changes
    floor = (2 if side == "two-sided" else 1) * max(2.0 ** (zeros - x.size), 1 / (1 + flips.means.size))
    low = high = None
    if x.size == 1:
        note = "one seed: no test, no interval"
    elif _constant(x):
        note = f"all {x.size} differences are {'zero' if x[0] == 0 else 'equal'}: no interval"
    else:
        notes = [f"{zeros} of {x.size} differences are zero" if zeros else "", _floor_note(floor, level)]
        if interval := flips.interval(level):
            low, high = interval
        else:
            notes.append(f"{x.size} seeds have no {level:.0%} interval")
        note = "; ".join(filter(None, notes))
    return Inference(float(x.mean()), low, high, int(x.size), sides[side], note)


def smallest_p(seeds: int) -> float:
    """Return the smallest two-sided p of a sign-flip test of that many seeds: 2 / 2^n, and 1 for one seed."""
    return min(1.0, 2 / 2**seeds)


def seeds_needed(alpha: float) -> int:
    """Return the fewest seeds with which a two-sided sign-flip test can reach p ≤ alpha: 6 for 0.05.

    Raises:
        ValueError: alpha is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha = {alpha}: must lie between 0 and 1")
    seeds = 1
    while smallest_p(seeds) > alpha:
        seeds += 1
    return seeds


def equivalence_test(differences: ArrayLike, margin: float, alpha: float = 0.05) -> Inference:
    """Test if paired differences lie within ± margin: two one-sided t tests (Schuirmann 1987).

    p is the larger p of the two tests, against a mean ≤ −margin and against a mean ≥ margin. It is at most alpha if the
    interval of level 1 − 2 alpha lies within the margin. The same criterion with the interval of ``sign_flip_test``
    needs no normal distribution.

    Args:
        differences: (n,) one difference per seed.
        margin: the largest difference that does not matter, fixed beforehand, in units of the differences.
        alpha: level of each of the two tests.

    Raises:
        ValueError: the margin is not positive; no value, or a value that is not finite.
    """
    x = _finite(differences)
    if not margin > 0:
        raise ValueError(f"margin = {margin}: must be the largest difference that does not matter, above 0")
    mean = float(x.mean())
    if x.size < 2 or _constant(x):
        why = "one seed" if x.size < 2 else f"all {x.size} differences equal"
        return Inference(mean, None, None, int(x.size), None, f"{why}: no test, no interval")
    # The test on the nearer margin has the larger p.
    nearer = (margin - abs(mean)) * math.sqrt(x.size) / float(x.std(ddof=1))
    interval = mean_interval(x, 1 - 2 * alpha)
    return Inference(mean, interval.low, interval.high, int(x.size), float(stats.t.sf(nearer, x.size - 1)))


def false_discovery_rates(p_values: Sequence[float | None] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the q of several tests, in their order (Benjamini & Hochberg 1995).

    Of the tests with q ≤ α, a share of at most α is expected to be false, if the tests are independent or depend on
    each other positively (Benjamini & Yekutieli 2001).

    Args:
        p_values: p of each test; None or NaN if it was not run. Such a test does not count, and its q is NaN.

    Raises:
        ValueError: a p outside 0 to 1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    run = np.flatnonzero(~np.isnan(p))
    if ((p[run] < 0) | (p[run] > 1)).any():
        raise ValueError(f"p must lie between 0 and 1, not {p[run].tolist()}")
    q = np.full(p.shape, np.nan)
    if run.size:
        q[run] = stats.false_discovery_control(p[run])
    return q


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"finite values are needed, one at least, not {x.tolist()}")
    return x


def _constant(x: NDArray[np.float64]) -> bool:
    return bool(np.ptp(x) <= 1e-12 * np.abs(x).max())  # differences of equal differences are equal up to rounding


def _floor_note(floor: float, level: float = 0.95) -> str:
    return f"p cannot fall below {floor:.3g}" if floor > 1 - level + 1e-12 else ""


def _subset_means(x: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Return the means of the non-empty subsets of the values, all or random ones, ascending."""
    if x.size <= EXACT_SEEDS:
        return np.sort(_weights_of_subsets(x.size) @ x)
    member = np.random.default_rng(seed).integers(0, 2, (DRAWS, x.size))
    member = member[member.any(axis=1)]
    return np.sort(member @ x / member.sum(axis=1))


@lru_cache(maxsize=4)
def _weights_of_subsets(n: int) -> NDArray[np.float64]:
    """Return 1 / size at the members of each non-empty subset of n values, (2^n − 1, n)."""
    member = np.arange(1, 2**n)[:, None] >> np.arange(n) & 1
    return member / member.sum(axis=1, keepdims=True)


def _all_relabelings(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return every distinct order of the labels (orders, n), built group by group."""
    rows = np.empty((1, 0), dtype=np.int64)
    for name, size in zip(*np.unique(labels, return_counts=True), strict=True):
        width = rows.shape[1] + int(size)
        places = np.array(list(combinations(range(width), int(size))))
        free = np.ones((len(places), 1, width), dtype=bool)
        np.put_along_axis(free, places[:, None], False, axis=2)
        grown = np.full((len(places), len(rows), width), name)
        grown[np.broadcast_to(free, grown.shape)] = np.tile(rows.ravel(), len(places))
        rows = grown.reshape(-1, width)
    return rows
