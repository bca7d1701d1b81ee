import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from analysis.stats import mean_interval, permutation_p, permuted_labels


def test_the_interval_is_students():
    estimate = mean_interval([0.80, 0.82, 0.84])
    low, high = scipy_stats.t.interval(0.95, 2, loc=0.82, scale=0.02 / math.sqrt(3))
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((0.82, low, high))
    assert estimate.n == 3


def test_one_run_has_no_interval_and_says_so():
    estimate = mean_interval([0.5])
    assert math.isnan(estimate.low)
    assert "n = 1, no interval" in str(estimate)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]], ids=str)
def test_values_without_a_mean_are_refused(values):
    with pytest.raises(ValueError, match="finite"):
        mean_interval(values)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(3.0, 2.0, (2000, 8))
    covered = np.mean([(e := mean_interval(row)).low <= 3.0 <= e.high for row in draws])
    assert covered == pytest.approx(0.95, abs=0.015)


def test_p_counts_the_observation_and_ties():
    assert permutation_p(2.0, [1.0, 2.0, 3.0]) == pytest.approx(3 / 4)
    assert permutation_p(9.0, [1.0, 2.0, 3.0]) == pytest.approx(1 / 4)


def test_permuting_keeps_the_sizes_of_the_groups():
    draws = permuted_labels([0, 0, 0, 1, 2], 50, seed=1)
    assert draws.shape == (50, 5)
    assert (np.sort(draws, axis=1) == [0, 0, 0, 1, 2]).all()
    assert len({tuple(row) for row in draws}) > 10
