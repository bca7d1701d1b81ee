import math
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from analysis.stats import (
    Inference,
    equivalence_test,
    false_discovery_rates,
    label_permutation_test,
    mean_interval,
    null_p,
    permutation_p,
    permuted_labels,
    proportion_interval,
    seeds_needed,
    sign_flip_test,
    smallest_p,
)

TESTS_OF_VALUES = [mean_interval, sign_flip_test, lambda values: equivalence_test(values, 1.0)]


def covers(interval, truth):
    return interval.low <= truth <= interval.high


def uniform(p):
    return scipy_stats.kstest(p, "uniform").pvalue > 0.01


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
@pytest.mark.parametrize("test", TESTS_OF_VALUES, ids=["mean", "sign flip", "equivalence"])
def test_values_without_a_mean_are_refused(test, values):
    with pytest.raises(ValueError, match="finite"):
        test(values)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(3.0, 2.0, (2000, 8))
    covered = np.mean([covers(mean_interval(row), 3.0) for row in draws])
    assert covered == pytest.approx(0.95, abs=0.015)


def test_p_counts_the_observation_and_ties():
    assert permutation_p(2.0, [1.0, 2.0, 3.0]) == pytest.approx(3 / 4)
    assert permutation_p(9.0, [1.0, 2.0, 3.0]) == pytest.approx(1 / 4)
    assert permutation_p(9.0, [1.0, -math.inf, math.inf]) == pytest.approx(2 / 4)


def test_nan_is_no_value_of_a_null():
    with pytest.raises(ValueError, match=r"^9 of 9 values of the null: NaN cannot be compared$"):
        permutation_p(1.0, [math.nan] * 9)
    with pytest.raises(ValueError, match=r"^1 of 3 values of the null: NaN"):
        null_p(1.0, [0.0, math.nan, 2.0], "less")
    with pytest.raises(ValueError, match=r"^observed value: NaN"):
        permutation_p(math.nan, [1.0, 2.0])


def test_p_to_either_side():
    null = [1.0, 2.0, 3.0, 4.0]
    assert null_p(3.0, null, "greater") == pytest.approx(3 / 5)
    assert null_p(1.0, null, "less") == pytest.approx(2 / 5)
    assert null_p(0.0, null, "two-sided") == pytest.approx(2 / 5)
    assert null_p(2.5, null, "two-sided") == 1
    with pytest.raises(ValueError, match="'both': must be one of greater, less, two-sided"):
        null_p(2.5, null, "both")  # type: ignore[arg-type]


def test_permuting_keeps_the_sizes_of_the_groups():
    draws = permuted_labels([0, 0, 0, 1, 2], 50, seed=1)
    assert draws.shape == (50, 5)
    assert (np.sort(draws, axis=1) == [0, 0, 0, 1, 2]).all()
    assert len({tuple(row) for row in draws}) > 10


def test_sign_flips_of_three_seeds_by_hand():
    """The sums of ±1 ±2 ±4 are ±7, ±5, ±3, ±1."""
    assert sign_flip_test([1, 2, 4]).p == pytest.approx(2 / 8)
    assert sign_flip_test([1, 2, 4], "greater").p == pytest.approx(1 / 8)
    assert sign_flip_test([1, 2, 4], "less").p == 1
    assert sign_flip_test([-1, 2, 4]).p == pytest.approx(4 / 8)  # ±5 and ±7
    assert sign_flip_test([-1, 2, 4], "greater").p == pytest.approx(2 / 8)
    assert sign_flip_test([1, 2, -3]).p == 1  # the sum is zero, up to rounding
    assert sign_flip_test([0.1, 0.2, -0.3]).p == 1


def test_the_interval_of_sign_flips_by_hand():
    """The means of the subsets of 1, 2, 4 are 1, 1.5, 2, 7/3, 2.5, 3, 4; at level 3/4 one is left out at either end."""
    result = sign_flip_test([1, 2, 4], level=0.75)
    assert (result.low, result.high) == pytest.approx((1, 4))
    result = sign_flip_test([1, 2, 4], level=0.5)
    assert (result.low, result.high) == pytest.approx((1.5, 3))
    assert result.value == pytest.approx(7 / 3)


differences = st.lists(st.integers(-20, 20), min_size=2, max_size=7)


@settings(max_examples=60)
@given(differences)
def test_sign_flips_are_all_tried(values):
    sums = [abs(np.dot(signs, values)) for signs in product([-1, 1], repeat=len(values))]
    assert sign_flip_test(values).p == pytest.approx(np.mean(np.array(sums) >= abs(sum(values))))


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(6, 10), st.floats(-1, 1))
def test_the_interval_of_sign_flips_holds_what_the_test_does_not_reject(seed, n, truth):
    x = np.random.default_rng(seed).normal(size=n)
    p = sign_flip_test(x - truth).p
    assert p is not None
    assert covers(sign_flip_test(x), truth) == (p > 0.05)


def test_few_seeds_cannot_be_significant_and_say_so():
    result = sign_flip_test([1, 2, 3, 4, 5])
    assert (result.p, result.low, result.high) == (pytest.approx(0.0625), None, None)
    assert result.note == "p cannot fall below 0.0625; 5 seeds have no 95% interval"
    assert sign_flip_test([1, 2, 3, 4, 5], "greater").note == "5 seeds have no 95% interval"
    six = sign_flip_test([1, 2, 3, 4, 5, 6])
    assert (six.p, six.low, six.high, six.note) == (pytest.approx(2 / 64), 1, 6, "")


def test_the_floor_of_the_sign_flip_test():
    assert [smallest_p(n) for n in (1, 2, 5, 6, 8)] == [1, 0.5, 0.0625, 0.03125, 0.0078125]
    assert [seeds_needed(alpha) for alpha in (0.5, 0.0625, 0.05, 0.05 / 27, 0.001)] == [2, 5, 6, 11, 11]
    with pytest.raises(ValueError, match="between 0 and 1"):
        seeds_needed(0)


@pytest.mark.parametrize(
    ("values", "p", "note"),
    [
        ([3.0], 1, "one seed: no test, no interval"),
        ([0.0, 0.0], 1, "all 2 differences are zero: no interval"),
        ([2.0] * 6, 2 / 64, "all 6 differences are equal: no interval"),
        ([0.3, 0.1 + 0.2], 1 / 2, "all 2 differences are equal: no interval"),
    ],
)
def test_constants_and_one_seed_are_said(values, p, note):
    result = sign_flip_test(values)
    assert (result.p, result.low, result.high, result.note) == (pytest.approx(p), None, None, note)


def test_differences_of_zero_raise_the_floor():
    result = sign_flip_test([1, 2, 3, 4, 0, 0, 0, 0])
    assert result.p == pytest.approx(2 * 16 / 256)
    assert result.note == "4 of 8 differences are zero; p cannot fall below 0.125"


def test_sign_flip_p_is_uniform_without_an_effect():
    draws = np.random.default_rng(1).laplace(size=(500, 10))
    assert uniform([sign_flip_test(row).p for row in draws])
    many = np.random.default_rng(2).laplace(size=(100, 20))  # too many to try all
    assert uniform([sign_flip_test(row, seed=seed).p for seed, row in enumerate(many)])


@pytest.mark.parametrize("n", [8, 20], ids=["exact", "random flips"])
def test_sign_flip_intervals_cover_as_often_as_they_say(n):
    """6 of 255 subset means of 8 values are left out at either end, so coverage is 1 − 12/256 whatever the law."""
    rng = np.random.default_rng(3)
    draws = 2 + rng.standard_t(3, size=(200 if n == 20 else 2000, n))
    covered = np.mean([covers(sign_flip_test(row), 2) for row in draws])
    assert covered == pytest.approx(1 - 12 / 256 if n == 8 else 0.95, abs=0.04 if n == 20 else 0.015)


def group_difference(values):
    x = np.asarray(values, dtype=float)
    return lambda labels: x[labels == 1].mean() - x[labels == 0].mean()


def test_relabelings_of_four_items_by_hand():
    """The pair 3, 5 has the largest sum of the six pairs of 1, 2, 3, 5; the pair 2, 5 the next."""
    result = label_permutation_test([0, 0, 1, 1], group_difference([1, 2, 3, 5]))
    assert (result.value, result.p, result.n) == (pytest.approx(2.5), pytest.approx(1 / 6), 4)
    assert result.note == "p cannot fall below 0.167"
    assert label_permutation_test([0, 1, 0, 1], group_difference([1, 2, 3, 5])).p == pytest.approx(2 / 6)
    assert label_permutation_test([0, 0, 1, 1], group_difference([1, 2, 3, 5]), "less").p == 1
    assert label_permutation_test([0, 0, 1, 1], group_difference([1, 2, 3, 5]), "two-sided").p == pytest.approx(2 / 6)


def test_all_distinct_relabelings_are_tried_once():
    labels, seen = np.array([2, 0, 2, 1, 0, 2]), []
    label_permutation_test(labels, lambda row: len(seen.append(tuple(row)) or seen))
    assert len(seen) == 60  # 6! / (2! 1! 3!)
    assert set(seen) == set(permutations(labels.tolist()))
    assert seen[0] == tuple(labels)


@pytest.mark.parametrize("side", ["greater", "less", "two-sided"])
def test_exact_relabeling_is_scipys(side):
    rng = np.random.default_rng(4)
    values, labels = rng.normal(size=10), np.repeat([0, 1], [6, 4])
    expected = scipy_stats.permutation_test(
        (values[labels == 1], values[labels == 0]),
        lambda a, b: a.mean() - b.mean(),
        n_resamples=1000,  # of 210 there are
        alternative=side,
    )
    assert label_permutation_test(labels, group_difference(values), side).p == pytest.approx(expected.pvalue)


def test_relabeling_p_is_uniform_without_an_effect():
    rng, labels = np.random.default_rng(5), np.repeat([0, 1], [5, 3])
    # 56 relabelings: spread the steps of p evenly, so that it can be held against the uniform law.
    p = [label_permutation_test(labels, group_difference(rng.normal(size=8))).p for _ in range(500)]
    assert uniform(np.array(p) - rng.uniform(size=500) / 56)


def test_many_relabelings_are_drawn_at_random():
    labels, values = np.repeat([0, 1], [10, 10]), np.arange(20.0)
    assert label_permutation_test(labels, group_difference(values)).p == pytest.approx(1 / 10_000)
    rng = np.random.default_rng(6)
    values = rng.normal(size=20) + 0.5 * labels
    expected = scipy_stats.permutation_test(
        (values[labels == 1], values[labels == 0]), lambda a, b: a.mean() - b.mean(), alternative="greater", rng=rng
    )
    assert label_permutation_test(labels, group_difference(values)).p == pytest.approx(expected.pvalue, abs=0.02)


def test_labels_with_nothing_to_permute_are_said():
    one = label_permutation_test([3, 3, 3], lambda labels: labels.sum())
    assert (one.p, one.note) == (1, "one group: nothing to permute")
    same = label_permutation_test([0, 1, 1], lambda _: 0.25)
    assert (same.p, same.note) == (1, "the same under all labels: nothing to test")
    with pytest.raises(ValueError, match=r"groups of \[1, 2\] give a statistic of nan"):
        label_permutation_test([0, 1, 1], lambda _: math.nan)
    with pytest.raises(ValueError, match="one per item"):
        label_permutation_test([], lambda _: 0.0)


def test_the_exact_interval_of_a_proportion_by_hand():
    low, high = proportion_interval(6, 6)
    assert (low, high) == (pytest.approx(0.025 ** (1 / 6)), 1)  # where six of six have a chance of 2.5%
    assert proportion_interval(0, 6) == (0, pytest.approx(1 - low))
    assert proportion_interval(1, 1, level=0.9) == (pytest.approx(0.05), 1)


@pytest.mark.parametrize(("successes", "trials"), [(1, 3), (7, 8), (5000, 10_000)])
def test_at_the_ends_of_the_interval_a_proportion_has_a_chance_of_half_the_rest(successes, trials):
    low, high = proportion_interval(successes, trials)
    assert scipy_stats.binom.sf(successes - 1, trials, low) == pytest.approx(0.025)
    assert scipy_stats.binom.cdf(successes, trials, high) == pytest.approx(0.025)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (3, 2), (-1, 4)])
def test_proportions_that_are_none_are_refused(successes, trials):
    with pytest.raises(ValueError, match=f"{successes} successes of {trials} trials"):
        proportion_interval(successes, trials)


def test_intervals_of_proportions_cover_at_least_as_often_as_they_say():
    intervals = [proportion_interval(k, 12) for k in range(13)]
    for truth in (0.1, 0.5, 0.83):
        chance = scipy_stats.binom.pmf(np.arange(13), 12, truth)
        assert sum(p for p, (low, high) in zip(chance, intervals, strict=True) if low <= truth <= high) >= 0.95


def test_equivalence_is_two_one_sided_t_tests():
    x = [0.010, -0.004, 0.007, 0.002, -0.001, 0.004]
    above = scipy_stats.ttest_1samp(x, -0.01, alternative="greater")[1]
    below = scipy_stats.ttest_1samp(x, 0.01, alternative="less")[1]
    result, mirrored = equivalence_test(x, 0.01), equivalence_test(-np.array(x), 0.01)
    assert result.p == mirrored.p == pytest.approx(np.max([above, below]))
    interval = mean_interval(x, 0.90)
    assert (result.value, result.low, result.high) == (interval.mean, interval.low, interval.high)


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(2, 9), st.floats(0.1, 3))
def test_what_is_equivalent_has_its_interval_within_the_margin(seed, n, margin):
    result = equivalence_test(np.random.default_rng(seed).normal(0.2, 1, size=n), margin)
    assert result.p is not None and result.low is not None and result.high is not None
    assert (result.p <= 0.05) == (-margin <= result.low and result.high <= margin)


def test_at_the_margin_equivalence_errs_no_more_often_than_alpha():
    draws = np.random.default_rng(9).normal(0.5, 0.3, size=(1000, 8))
    wrong = [equivalence_test(row, 0.5).p for row in draws]
    assert np.mean([p is not None and p <= 0.05 for p in wrong]) == pytest.approx(0.05, abs=0.02)
    inside = [equivalence_test(row - 0.5, 0.5).p for row in draws[:300]]
    assert np.mean([p is not None and p <= 0.05 for p in inside]) > 0.9


def test_the_sign_flip_interval_errs_no_more_often_than_alpha_at_the_margin():
    draws = np.random.default_rng(10).laplace(0.5, 0.2, size=(2000, 8))
    results = [sign_flip_test(row, level=0.90) for row in draws]
    inside = [each.low > -0.5 and each.high < 0.5 for each in results if each.low is not None and each.high is not None]
    assert len(inside) == 2000
    assert np.mean(inside) == pytest.approx(12 / 256, abs=0.015)  # 12 of 255 subset means are left out at either end


def test_equivalence_that_cannot_be_tested_says_so():
    assert equivalence_test([0.1], 1).note == "one seed: no test, no interval"
    constant = equivalence_test([0.1, 0.1], 1)
    assert (constant.p, constant.note) == (None, "all 2 differences equal: no test, no interval")
    for margin in (0, -0.1, math.nan):
        with pytest.raises(ValueError, match="does not matter"):
            equivalence_test([0.1, 0.2], margin)


def test_what_was_found_reads_as_a_line():
    assert str(sign_flip_test([1, 2, 3, 4, 5, 6])) == "3.5 [1, 6], p = 0.031, n = 6"
    assert str(Inference(2.0, None, None, 1, None, "one value: no interval")) == "2, n = 1 (one value: no interval)"


def test_false_discovery_rates_are_those_of_benjamini_and_hochberg():
    # Sorted .005, .01, .03, .04, .5 of 5: .025, .025, .05, .05, .5, each the smallest of those from it on.
    q = false_discovery_rates([0.04, None, 0.005, 0.5, 0.01, 0.03])
    assert q[[0, 2, 3, 4, 5]] == pytest.approx([0.05, 0.025, 0.5, 0.025, 0.05])
    assert np.isnan(q[1])
    assert np.isnan(false_discovery_rates([None, None])).all()
    with pytest.raises(ValueError, match="between 0 and 1"):
        false_discovery_rates([1.5])


@pytest.mark.parametrize("unit", [1e-12, 1e-3, 1.0, 1e12])
def test_no_unit_changes_a_p(unit):
    x = np.array([0.3, 1.9, 1.1, -0.6, 2.2, 0.7, 1.4, 0.2])
    labels = [0, 0, 0, 0, 1, 1, 1, 1]
    plain, scaled = sign_flip_test(x).p, sign_flip_test(unit * x).p
    assert scaled == plain and plain is not None and plain < 0.1

    def difference(values):
        return lambda group: float(values[group == 1].mean() - values[group == 0].mean())

    dealt = [label_permutation_test(labels, difference(values)).p for values in (x, unit * x)]
    assert dealt[0] == dealt[1] and dealt[0] is not None and dealt[0] < 1
    assert permutation_p(2 * unit, np.array([1, 3, 2, 0.5]) * unit) == pytest.approx(3 / 5)
