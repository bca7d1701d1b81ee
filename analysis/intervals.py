"""Means over seeds, with an interval from six seeds on, within the bounds of the quantity.

With fewer seeds an interval is of little use. Student's interval of two seeds extends twelve standard errors to either
side, and the smallest p of a sign-flip test of five seeds is 0.0625.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from numpy.typing import ArrayLike

from analysis.stats import Estimate, mean_interval

SEEDS_FOR_INTERVAL = 6
UNBOUNDED = (-math.inf, math.inf)

Bounds = tuple[float, float]

# The least and the largest possible value of each measure, else of each unit.
_OF_MEASURES: tuple[tuple[str, Bounds], ...] = (
    (r"lesion_.*|(colour|selectivity|orientation)_difference", (-1.0, 1.0)),
    (r".*_accuracy|.*_auc(_permuted)?|(cka|cca|pwcca|procrustes)_between|.*_p", (0.0, 1.0)),
    (r"(training_)?ratio_.*|.*_information", (0.0, math.inf)),
)
_OF_UNITS: dict[str, Bounds] = {
    "fraction": (0.0, 1.0),
    "balanced accuracy": (0.0, 1.0),
    "p": (0.0, 1.0),
    "|r|": (0.0, 1.0),
    "r": (-1.0, 1.0),
    "adjusted Rand index": (-1.0, 1.0),
    "R²": (-math.inf, 1.0),
    "nats": (0.0, math.inf),
    "s": (0.0, math.inf),
}


@dataclass(frozen=True)
class SeedEstimate(Estimate):
    """A mean over seeds; ``low`` and ``high`` are NaN below six seeds.

    Attributes:
        seeds: the values, in the order of the seeds.
    """

    seeds: tuple[float, ...]

    def text(self, form: str = ".3f") -> str:
        """``0.91 [0.89, 0.93]``, an interval; ``0.91 (0.90 … 0.92)``, least and largest of fewer seeds; ``0.91``."""
        mean = f"{self.mean:{form}}"
        if self.n < 2:
            return mean
        if self.n < SEEDS_FOR_INTERVAL:
            return f"{mean} ({min(self.seeds):{form}} … {max(self.seeds):{form}})"
        return f"{mean} [{self.low:{form}}, {self.high:{form}}]"


def measure_bounds(measure: str, unit: str = "") -> Bounds:
    """Return the least and largest value that a measure of the long table can have."""
    for pattern, bounds in _OF_MEASURES:
        if re.fullmatch(pattern, measure):
            return bounds
    return _OF_UNITS.get(unit, UNBOUNDED)


def seed_estimate(values: ArrayLike, bounds: Bounds = UNBOUNDED) -> SeedEstimate:
    """Return the mean over seeds with Student's 95% interval, from six seeds on.

    The mean lies within the bounds, so that an interval cut at them covers it as often as the whole one.

    Args:
        values: (S,), one of each seed.
        bounds: least and largest possible value of the quantity.

    Raises:
        ValueError: no value, or a value that is not finite.
    """
    estimate = mean_interval(values)
    seeds = tuple(float(value) for value in values)  # type: ignore[union-attr]
    if estimate.n < SEEDS_FOR_INTERVAL:
        return SeedEstimate(estimate.mean, math.nan, math.nan, estimate.n, seeds)
    low, high = max(estimate.low, bounds[0]), min(estimate.high, bounds[1])
    return SeedEstimate(estimate.mean, low, high, estimate.n, seeds)
