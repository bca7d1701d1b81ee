"""One part of a claim: intervals, p for and against it, and the seeds it needs."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from analysis.effects import Effect, Metric, Term
from analysis.verdict import FEWEST_SEEDS, Test, interval_verdict, seeds_to_find, weigh

DIFFERENCE = Metric("difference", (Term("test_accuracy", ("grouped",)),), (Term("test_accuracy", ("dense",)),))
GAIN = Test(DIFFERENCE, "greater", matters=1.0)
EQUAL = Test(DIFFERENCE, "within", matters=1.0)
NO_GAIN = Test(DIFFERENCE, "no_greater", matters=1.0)
EVERY_RUN = Test(Metric("share", (Term("split", ("grouped",)),)), "greater", matters=0.15, than=0.8)


def over(values, test=GAIN, lost=0):
    return weigh(Effect(np.asarray(values, dtype=np.float64), lost=lost), test)


@pytest.mark.parametrize(
    ("low", "high", "verdict", "no_gain"),
    [
        (0.1, 1.5, "supported", "contradicted"),
        (1.2, 1.5, "supported", "contradicted"),
        (0.1, 0.9, "contradicted", "supported"),  # surely there, and surely too small to matter
        (-0.5, 0.9, "contradicted", "supported"),
        (-2.0, -1.0, "contradicted", "supported"),
        (-0.1, 1.5, "inconclusive", "inconclusive"),
    ],
)
def test_the_rule_on_an_interval_of_an_effect_whose_smallest_of_interest_is_1(low, high, verdict, no_gain):
    assert interval_verdict(low, high, GAIN) == verdict
    assert interval_verdict(3 + low, 3 + high, replace(GAIN, than=3.0)) == verdict
    assert interval_verdict(-high, -low, replace(GAIN, direction="less")) == verdict
    assert interval_verdict(3 - high, 3 - low, replace(GAIN, direction="less", than=3.0)) == verdict
    assert interval_verdict(low, high, NO_GAIN) == no_gain


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.9, 0.9, "supported"),
        (0.2, 0.9, "supported"),  # surely a difference, and surely too small to matter
        (0.2, 1.1, "inconclusive"),
        (-3.0, 3.0, "inconclusive"),
        (1.1, 1.3, "contradicted"),
        (-1.3, -1.1, "contradicted"),
    ],
)
def test_the_rule_on_an_interval_of_a_difference_whose_margin_is_1(low, high, verdict):
    assert interval_verdict(low, high, EQUAL) == verdict


def flips(x):
    """The one-sided p of a mean by all sign flips, written out."""
    means = [np.mean(np.array(signs) * x) for signs in product((1, -1), repeat=len(x))]
    return np.mean([mean >= np.mean(x) - 1e-9 for mean in means])


def test_p_is_that_of_all_sign_flips_about_nothing_and_about_the_smallest_effect_of_interest():
    x = np.array([0.3, 1.9, 1.1, -0.6, 2.2, 0.7, 1.4])
    gain = over(x, replace(GAIN, matters=1.7))
    assert (gain.support, gain.oppose) == (pytest.approx(flips(x)), pytest.approx(flips(1.7 - x)))
    less = over(-x, replace(GAIN, direction="less", matters=1.7))
    assert (less.support, less.oppose) == (pytest.approx(flips(x)), pytest.approx(flips(1.7 - x)))
    equal = over(x, replace(EQUAL, matters=2.5))
    assert equal.support == pytest.approx(max(flips(2.5 - x), flips(2.5 + x)))
    assert equal.oppose == pytest.approx(min(flips(x - 2.5), flips(-2.5 - x)))
    none = over(x, replace(NO_GAIN, matters=1.7))
    assert (none.support, none.oppose) == (pytest.approx(flips(1.7 - x)), pytest.approx(flips(x)))


def test_where_there_are_too_many_seeds_for_all_flips_it_is_students_t():
    x = np.random.default_rng(2).normal(0.8, 1, 30)
    t = x.mean() / (x.std(ddof=1) / math.sqrt(30))
    interval = scipy_stats.ttest_1samp(x, 0).confidence_interval(0.95)
    part = over(x)
    assert part.support == pytest.approx(scipy_stats.t.sf(t, 29))
    assert (part.low, part.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


@pytest.mark.parametrize("test", [GAIN, EQUAL, NO_GAIN, replace(GAIN, direction="less", matters=0.4)])
@pytest.mark.parametrize("seeds", [8, 20])
def test_p_is_small_exactly_where_the_interval_says_so(test, seeds):
    rng = np.random.default_rng(3)
    for x in rng.normal(rng.choice([-0.8, 0, 0.8]), 1, (150, seeds)):
        part = over(x, test)
        assert part.low is not None and part.high is not None
        assert part.support is not None and part.oppose is not None
        verdict = interval_verdict(part.low, part.high, test)
        assert (part.support <= 0.025) == (verdict == "supported")
        assert (part.oppose <= 0.025) == (verdict == "contradicted")


@given(
    st.lists(st.floats(-5, 5), min_size=FEWEST_SEEDS, max_size=9),
    st.floats(-3, 3),
    st.sampled_from([1e-12, 0.1, 1.0, 1e9]),
    st.sampled_from(["greater", "within"]),
)
@settings(max_examples=60)
def test_p_depends_neither_on_the_unit_nor_on_the_sign_convention(values, than, unit, direction):
    x = np.array(values).round(3)
    assume(np.ptp(x) > 1e-2)
    plain = over(x + than, Test(DIFFERENCE, direction, 1.0, than))
    mirrored = Test(DIFFERENCE, "less" if direction == "greater" else "within", unit)
    other = over(-unit * x, mirrored)
    if np.abs(np.subtract.outer(x, [-1, 0, 1])).min() > 1e-6:  # ties fall either way by rounding once shifted
        assert (other.support, other.oppose) == (pytest.approx(plain.support), pytest.approx(plain.oppose))


# A share.


@pytest.mark.parametrize(("split", "seeds"), [(17, 17), (16, 17), (14, 14), (8, 12)])
def test_a_share_is_judged_by_its_exact_interval(split, seeds):
    part = over([1.0] * split + [0.0] * (seeds - split), EVERY_RUN)
    low = scipy_stats.beta.ppf(0.025, split, seeds - split + 1)
    assert (part.effect, part.low) == (split / seeds, pytest.approx(low))
    # .8^17 = .0225: all of 17 seeds are the fewest whose lower bound exceeds .8
    assert part.support is not None
    assert (part.support <= 0.025) == (split == seeds == 17)
    assert (part.oppose is not None and part.oppose <= 0.025) == ((split, seeds) == (8, 12))


def test_every_run_needs_41_seeds():
    # The first n at which P(k of n splits support | .95) reaches .8, by the binomial itself.
    def power(n):
        k = np.arange(n + 1)
        enough = scipy_stats.binom.sf(k - 1, n, 0.8) <= 0.025
        return scipy_stats.binom.pmf(k[enough], n, 0.95).sum()

    first = next(n for n in range(6, 100) if power(n) >= 0.8)
    assert seeds_to_find(EVERY_RUN, None) in (first, first + 1)
    assert seeds_to_find(EVERY_RUN, None) == 41


def test_uniform_p_in_every_run_is_not_called_a_split_in_every_run():
    rng = np.random.default_rng(0)
    for row in rng.uniform(size=(200, 8)) < 0.05:
        part = over(row.astype(float), EVERY_RUN)
        assert part.oppose is not None and part.oppose <= 0.025


# Power: what "needs" promises.


def supported(effect, spread, seeds, test, simulations=400):
    rng = np.random.default_rng(11)
    p_values = [over(effect + spread * rng.normal(size=seeds), test).support for _ in range(simulations)]
    return np.mean([p is not None and p <= 0.025 for p in p_values])


@pytest.mark.parametrize("test", [GAIN, EQUAL, NO_GAIN], ids=["gain", "equal", "no gain"])
@pytest.mark.parametrize("spread", [0.45, 0.6, 1.0, 2.0])
def test_the_number_of_seeds_that_is_named_has_a_power_of_80_percent_and_few_fewer_have(spread, test):
    planted = 1.0 if test is GAIN else 0.0
    needed = seeds_to_find(test, spread)
    assert needed is not None
    # 400 simulations of a power of 80% have a standard error of 2 points; sign flips of 7 to 10 normal values lose up
    # to 2 more against the t test by which the power is computed.
    assert supported(planted, spread, needed, test) >= 0.8 - 0.06
    if needed > FEWEST_SEEDS:
        assert supported(planted, spread, math.floor(0.8 * needed), test) < 0.8 + 0.04


def test_more_spread_and_a_stricter_p_need_more_seeds():
    assert [seeds_to_find(GAIN, spread) for spread in (0.3, 0.5, 1, 2)] == sorted(
        seeds_to_find(GAIN, spread) or 0 for spread in (0.3, 0.5, 1, 2)
    )
    # .05 / 22 of one side: no fewer than 9 seeds can reach it, since 2^-8 = .0039 and 2^-9 = .002.
    assert seeds_to_find(GAIN, 0.01, 0.05 / 22) == 9
    assert seeds_to_find(GAIN, 0.01) == FEWEST_SEEDS
    assert seeds_to_find(GAIN, 100.0) is None
    assert seeds_to_find(GAIN, None) is None


# What cannot be decided is reported.


def test_fewer_than_six_seeds_are_inconclusive_however_clear_they_look():
    part = over([5.0, 5.1, 4.9, 5.05, 4.95])
    assert (part.decided, part.support, part.oppose) == ("inconclusive", None, None)
    assert "5 seeds: at least 6 are needed" in part.note
    one = over([5.0])
    assert (one.decided, one.low, one.spread) == ("inconclusive", None, None)
    assert "1 seed:" in one.note


def test_equal_values_have_no_interval_and_say_so():
    for value in (0.0, 0.3):
        part = over([value] * 8)
        assert (part.decided, part.support) == ("inconclusive", None)
        assert "all 8 values equal" in part.note
