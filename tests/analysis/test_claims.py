import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from analysis.claims import FEWEST_SEEDS, Claim, Finding, Record, Test, adjust, combine, find, judge
from analysis.effects import Effect, Metric, Term

ACCURACY = Term("test_accuracy", ("grouped",))
DIFFERENCE = Metric("difference", (ACCURACY,), (Term("test_accuracy", ("dense",)),))
GAIN = Test(DIFFERENCE, "greater", matters=1.0)
EQUAL = Test(DIFFERENCE, "within", matters=1.0)
EVERY_RUN = Test(Metric("share", (Term("p", ("grouped",)),)), "greater", matters=0.45, than=0.5)


def over(values, test=GAIN):
    return judge(Effect(np.asarray(values, dtype=np.float64)), test)


def verdict_of_interval(low, high, test):
    return judge(Effect(np.array([(low + high) / 2]), low, high), test).verdict


# The rule.


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.1, 1.5, "supported"),
        (1.2, 1.5, "supported"),
        (0.1, 0.9, "contradicted"),  # surely there, and surely too small to matter
        (-0.5, 0.9, "contradicted"),
        (-2.0, -1.0, "contradicted"),
        (-0.1, 1.5, "inconclusive"),
    ],
)
def test_the_rule_on_an_interval_of_an_effect_whose_smallest_of_interest_is_1(low, high, verdict):
    assert verdict_of_interval(low, high, GAIN) == verdict
    assert verdict_of_interval(3 + low, 3 + high, replace(GAIN, than=3.0)) == verdict
    assert verdict_of_interval(-high, -low, replace(GAIN, direction="less")) == verdict
    assert verdict_of_interval(3 - high, 3 - low, replace(GAIN, direction="less", than=3.0)) == verdict


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
    assert verdict_of_interval(low, high, EQUAL) == verdict


@given(
    st.lists(st.floats(-5, 5), min_size=FEWEST_SEEDS, max_size=12),
    st.floats(-3, 3),
    st.floats(0.1, 10),
    st.sampled_from(["greater", "within"]),
)
@settings(max_examples=60, deadline=None)
def test_verdicts_depend_neither_on_the_unit_nor_on_the_sign_convention(values, than, unit, direction):
    x = np.array(values)
    assume(np.ptp(x) > 1e-3)
    test = Test(DIFFERENCE, direction, matters=1.0)
    plain = over(x, test)
    mirrored = Test(DIFFERENCE, "less" if direction == "greater" else "within", unit, than)
    other = over(than - unit * x, mirrored)
    assert plain.p is not None
    assert (other.verdict, other.seeds) == (plain.verdict, plain.seeds)
    assert other.p == pytest.approx(plain.p, rel=1e-6, abs=1e-12)


def test_interval_and_p_are_those_of_the_t_test_of_scipy():
    x = np.array([0.3, 1.9, 1.1, 0.6, 2.2, 0.7, 1.4])
    found = over(x)
    expected = scipy_stats.ttest_1samp(x, 0)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.verdict, found.n) == ("supported", 7)
    assert over(-x).p == 1.0, "an effect the other way is no evidence for the claim"


def test_p_is_below_a_twentieth_exactly_where_the_interval_lies_beyond_nothing():
    rng = np.random.default_rng(3)
    for test in (GAIN, EQUAL):
        for x in rng.normal(0.8 if test is GAIN else 0, 1, (300, 8)):
            found = over(x, test)
            assert found.p is not None and found.low is not None and found.high is not None
            beyond = found.low > 0 if test is GAIN else max(-found.low, found.high) < 1
            assert (found.p <= 0.05) == beyond


# Simulated data: wrong verdicts and power.

NOISE = {
    "normal": lambda rng, n: rng.normal(size=n),
    "heavy-tailed": lambda rng, n: rng.standard_t(3, n) / math.sqrt(3),
    "flat": lambda rng, n: rng.uniform(-math.sqrt(3), math.sqrt(3), n),
}


def shares(effect, spread, seeds, test=GAIN, noise="normal", simulations=500):
    rng = np.random.default_rng(11)
    found = [over(effect + spread * NOISE[noise](rng, seeds), test).verdict for _ in range(simulations)]
    return {verdict: found.count(verdict) / simulations for verdict in set(found)}


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize(("seeds", "spread"), [(6, 1.0), (8, 0.6), (8, 3.0)])
def test_with_no_effect_planted_at_most_a_twentieth_is_called_supported(seeds, spread, noise):
    assert shares(0.0, spread, seeds, noise=noise).get("supported", 0) <= 0.05


@pytest.mark.parametrize(("seeds", "spread"), [(8, 0.3), (8, 0.6), (20, 1.5)])
def test_with_a_difference_as_large_as_the_margin_at_most_a_twentieth_is_called_equal(seeds, spread):
    assert shares(1.0, spread, seeds, EQUAL).get("supported", 0) <= 0.05


def test_with_the_smallest_effect_of_interest_planted_at_most_a_twentieth_is_called_contradicted():
    assert shares(1.0, 1.0, 8).get("contradicted", 0) <= 0.05


@pytest.mark.parametrize("test", [GAIN, EQUAL], ids=["gain", "equal"])
@pytest.mark.parametrize("spread", [0.3, 0.6, 1.0, 2.0])
def test_eight_seeds_have_a_power_of_80_percent_or_the_ledger_says_how_many_have(spread, test):
    planted = 1.0 if test is GAIN else 0.0
    pattern = np.linspace(-1, 1, 8)
    needed = over(spread * pattern / pattern.std(ddof=1), test).seeds  # eight seeds of exactly this spread
    assert needed is not None
    at_eight = shares(planted, spread, 8, test).get("supported", 0)
    assert needed <= 8 or at_eight < 0.85, "more seeds are asked for only where eight have not the power"
    if needed <= 8:
        assert at_eight >= 0.8
    else:
        # 500 simulations of a power of 80% have a standard error of 1.8 points.
        assert shares(planted, spread, needed, test).get("supported", 0) >= 0.8 - 0.036
        assert shares(planted, spread, math.floor(0.85 * needed), test).get("supported", 0) < 0.8 + 0.036


def test_a_spread_that_no_thousand_seeds_overcome_is_said():
    found = over([100.0, -100, 50, -50, 80, -80, 1])
    assert found.seeds is None
    assert "more than 1000 seeds" in found.note


def test_uniform_p_in_every_run_is_not_called_a_split_in_every_run():
    rng = np.random.default_rng(0)
    split = rng.uniform(size=(500, 8)) < 0.05
    assert all(over(row, EVERY_RUN).verdict == "contradicted" for row in split)


@pytest.mark.parametrize(
    ("split", "seeds", "verdict"),
    [(8, 8, "supported"), (7, 8, "inconclusive"), (5, 8, "contradicted"), (6, 6, "supported"), (5, 5, "inconclusive")],
)
def test_a_share_is_judged_by_its_exact_interval(split, seeds, verdict):
    # Clopper–Pearson: 8/8 [.631, 1], 7/8 [.473, .997], 5/8 [.245, .915], 6/6 [.541, 1], 5/5 too few seeds.
    found = over([1.0] * split + [0.0] * (seeds - split), EVERY_RUN)
    assert (found.verdict, found.effect) == (verdict, split / seeds)
    # From 8 seeds only 8 of 8 support, which a share of .95 gives with .95^8 = .66; from 9 also 8 of 9: .93.
    assert found.seeds == 9


# What cannot be told is said.


def test_fewer_than_six_seeds_are_inconclusive_however_clear_they_look():
    found = over([5.0, 5.1, 4.9, 5.05, 4.95])
    assert (found.verdict, found.p) == ("inconclusive", None)
    assert "5 seeds: at least 6 are needed" in found.note
    one = over([5.0])
    assert (one.verdict, one.low, one.seeds) == ("inconclusive", None, None)
    assert "1 seed:" in one.note


def test_equal_values_have_no_interval_and_say_so():
    for value in (0.0, 0.3):
        found = over([value] * 8)
        assert (found.verdict, found.p) == ("inconclusive", None)
        assert "all 8 values equal" in found.note


def test_a_sign_flip_test_that_disagrees_is_told():
    x = [1.0, 1, 1, 1, 1, -0.2]  # t: p = .014; signs flipped: 4 of 64 at least as large on this side, p = .0625 or more
    found = over(x)
    assert found.p is not None and found.p < 0.05
    assert "signs flipped: p = 0.06" in found.note


# Parts, several studies, the whole ledger.


def test_a_claim_is_as_good_as_its_weakest_part():
    good, better = Finding("supported", 1.0, n=8, p=0.03), Finding("supported", 2.0, n=8, p=0.01)
    open_, wrong = Finding("inconclusive", 0.5, n=8, p=0.2), Finding("contradicted", -1.0, n=8, p=1.0)
    count, missing = Finding("supported", 0.3), Finding("not run", note="no x")
    assert combine([better, good]).effect == 1.0
    assert combine([better, good]).p == 0.03
    assert combine([better, open_]).verdict == "inconclusive"
    assert combine([missing, better]).verdict == "not run"
    assert combine([missing, better]).p is None
    assert combine([open_, missing, wrong, good]).verdict == "contradicted"
    assert combine([better, count]).p == 0.01
    assert combine([better]) == better
    assert "part 2 of 2 decides" in combine([better, good]).note


def record(study, seeds, gain, place="runs"):
    rng = np.random.default_rng(seeds)
    rows = [
        {"variant": variant, "seed": seed, "measure": "test_accuracy", "value": base + rng.normal(0, 0.1)}
        for variant, base in (("dense", 0.0), ("grouped", gain))
        for seed in range(seeds)
    ]
    return Record(study, place, pd.DataFrame(rows).assign(layer="", null="", groups=""), "a machine")


CLAIM = Claim(1, "Groups gain.", "a paper", "nothing", ("first", "second"), "", (GAIN,))


def test_the_first_record_with_enough_seeds_is_taken_whatever_it_says():
    few, against, for_it = record("first", 3, 2.0), record("first", 8, -2.0, "results"), record("second", 8, 2.0)
    found = find(CLAIM, [few, against, for_it])
    assert (found.verdict, found.record) == ("contradicted", against)
    assert find(CLAIM, [few]).n == 3
    assert find(CLAIM, [few]).record == few


def test_what_is_missing_is_named():
    assert find(CLAIM, []).note == "first or second has not been run"
    bare = replace(record("first", 8, 1.0), table=record("first", 8, 1.0).table.query("variant == 'dense'"))
    found = find(CLAIM, [bare])
    assert (found.verdict, found.note) == ("not run", "runs/first: no variant grouped")
    assert find(CLAIM, [bare, record("second", 8, 2.0)]).verdict == "supported"


def test_holm_counts_only_what_was_tested():
    found = adjust([Finding("supported", p=0.01), Finding("not run"), Finding("supported", p=0.04)])
    assert [f.adjusted for f in found] == [pytest.approx(0.02), None, pytest.approx(0.04)]


def test_holm_over_a_ledger_of_nothing_calls_any_claim_proven_in_at_most_a_twentieth_of_ledgers():
    rng = np.random.default_rng(5)
    wrong = 0
    for _ in range(200):
        ledger = adjust([over(row) for row in rng.normal(size=(6, 8))])
        wrong += any(f.adjusted is not None and f.adjusted <= 0.05 for f in ledger)
    assert wrong / 200 <= 0.05


def test_more_seeds_are_needed_for_more_spread():
    pattern = np.array([-1.0, -0.5, 0, 0.5, 1, 0.3, -0.3, 0])
    needed = [over(spread * pattern).seeds or 0 for spread in (0.5, 1, 2, 4)]
    assert all(few <= many for few, many in pairwise(needed)) and needed[0] < needed[-1]
