"""The few statistics that everything uses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its interval.

    Attributes:
        mean: of the values.
        low, high: bounds of the interval; NaN where there are fewer than two values, since one run has no interval.
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


def mean_interval(values: ArrayLike, level: float = 0.95) -> Estimate:
    """Mean with Student's t interval; the training seed is the unit.

    Raises:
        ValueError: no value, or a value that is not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"an interval needs finite values, not {x.tolist()}")
    mean = float(x.mean())
    if x.size < 2:
        return Estimate(mean, math.nan, math.nan, int(x.size))
    half = float(stats.t.ppf((1 + level) / 2, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size))
    return Estimate(mean, mean - half, mean + half, int(x.size))


def permutation_p(observed: float, null: ArrayLike) -> float:
    """Share of the null at least as large as what was observed, the observation counted in.

    So p is never 0, and a test at level α is wrong at most α of the time (Phipson & Smyth 2010). Values within rounding
    of the observation count as ties.
    """
    draws = np.asarray(null, dtype=np.float64)
    tie = 1e-12 * max(1.0, abs(observed))
    return float((1 + np.count_nonzero(draws >= observed - tie)) / (1 + draws.size))


def permuted_labels(labels: ArrayLike, permutations: int, seed: int) -> NDArray[np.int64]:
    """(permutations, n): the labels in random order, every group keeping its size."""
    rng = np.random.default_rng(seed)
    return rng.permuted(np.tile(np.asarray(labels, dtype=np.int64), (permutations, 1)), axis=1)
