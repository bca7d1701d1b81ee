import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.tradeoff import (
    difference_at_equal_cost,
    disturbed,
    equal_pairs,
    front_probability,
    on_front,
    over_seeds,
    paired_difference,
    tradeoff_table,
)


def long_table(**accuracies):
    rows = [
        {"variant": variant, "seed": seed, "layer": "", "measure": "test_accuracy", "value": value}
        for variant, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    for variant, macs in zip(accuracies, (400, 200), strict=False):
        rows.append({"variant": variant, "seed": None, "layer": "", "measure": "macs", "value": macs})
    return pd.DataFrame(rows)


def test_means_intervals_and_paired_differences_by_hand():
    table = tradeoff_table(long_table(dense=[0.80, 0.90] * 3, grouped=[0.79, 0.88] * 3))
    dense, grouped = table.iloc[0], table.iloc[1]
    assert dense["accuracy"] == pytest.approx(0.85)
    assert (dense["n"], dense["macs"]) == (6, 400)
    assert math.isnan(dense["difference"])
    assert grouped["difference"] == pytest.approx(-0.015)
    # Differences -0.01 and -0.02, thrice: s = 0.005 √(6/5), t(0.975, 5) = 2.5706.
    assert grouped["difference_high"] == pytest.approx(-0.015 + 2.5706 * 0.005 / math.sqrt(5), rel=1e-4)
    assert math.isnan(grouped["latency"])


def test_only_seeds_that_both_have_are_paired():
    difference = paired_difference(
        long_table(dense=[0.8, 0.9, 0.7], grouped=[0.9]), "test_accuracy", "grouped", "dense"
    )
    assert difference is not None
    assert (difference.mean, difference.n) == (pytest.approx(0.1), 1)


def test_what_was_not_measured_is_none():
    table = long_table(dense=[0.8])
    assert over_seeds(table, "latency", "dense") is None
    assert paired_difference(table, "test_accuracy", "dense", "dense") is None
    assert paired_difference(table, "test_accuracy", "other", "dense") is None


def test_the_front_by_hand():
    # (1, .5) cheapest; (2, .4) dominated; (2, .7) and its twin; (3, .7) as good but dearer; (4, .9) best.
    front = on_front([1, 2, 2, 2, 3, 4], [0.5, 0.4, 0.7, 0.7, 0.7, 0.9])
    assert front.tolist() == [True, False, True, True, False, True]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8))
def test_what_is_off_the_front_is_dominated_by_something_on_it(points):
    front = on_front(*np.transpose(points))
    assert front.any()
    for (cost, accuracy), on in zip(points, front, strict=True):
        better = [(c, a) != (cost, accuracy) and c <= cost and a >= accuracy for c, a in points]
        assert on != any(better)
        if not on:
            assert any(b and f for b, f in zip(better, front, strict=True))


def test_the_probability_of_the_front_is_that_of_drawing_seeds_again():
    # grouped is cheaper. dense beats it where the mean difference of two drawn seeds is above 0: of the four draws from
    # (+.02, -.01) only (-.01, -.01) is not: 3/4.
    front = front_probability(long_table(dense=[0.82, 0.79], grouped=[0.80, 0.80]), "macs").set_index("variant")
    assert list(front.index) == ["grouped", "dense"]
    assert front.loc["grouped", "probability"] == 1
    assert front.loc["dense", "probability"] == pytest.approx(0.75, abs=0.03)
    assert front["on_front"].tolist() == [True, True]


def test_one_seed_has_no_probability_and_seeds_of_some_variants_are_left_out():
    front = front_probability(long_table(dense=[0.82, 0.8], grouped=[0.80]), "macs")
    assert front["probability"].isna().all()
    assert (front["note"] == "seeds left out, which not all variants have: 1; one seed: no probability").all()
    assert front_probability(long_table(dense=[0.8]), "energy").empty


def rows_of(measure, values, layer="", groups=""):
    return pd.DataFrame(
        [
            {"variant": v, "seed": None, "layer": layer, "measure": measure, "groups": groups or g, "value": x}
            for v, (x, g) in values.items()
        ]
    )


def test_pairs_at_equal_groups_and_at_equal_parameters_are_different_pairs():
    runs = long_table(dense=[0.9, 0.91], uniform=[0.8, 0.82], log=[0.81, 0.84], widened=[0.83, 0.83])
    sizes = {"dense": (1000, ""), "uniform": (500, ""), "log": (601, ""), "widened": (600, "")}
    cut = {"dense": (0, "1"), "uniform": (0, "4"), "log": (0, "log:4"), "widened": (0, "9,8,8,8")}
    table = pd.concat([runs, rows_of("parameters", sizes), rows_of("dead_filters", cut, "conv2")])
    by_groups, by_parameters = (equal_pairs(table, by, margin=0.01) for by in ("groups", "parameters"))
    pairs = [set(zip(frame["variant"], frame["baseline"], strict=True)) for frame in (by_groups, by_parameters)]
    assert pairs == [{("log", "uniform"), ("widened", "uniform"), ("widened", "log")}, {("widened", "log")}]
    row = by_groups.set_index(["variant", "baseline"]).loc[("log", "uniform")]
    assert (row["difference"], row["n"]) == (pytest.approx(0.015), 2)
    assert row["p"] == 0.5, "two seeds: 2 / 2²"
    assert "p cannot fall below 0.5" in row["note"]
    assert equal_pairs(table, "energy", margin=0.01).empty
    # A dense layer that was cut for comparison is still dense.
    cut = pd.DataFrame(
        [{"variant": "dense", "measure": "within_computed", "null": "arbitrary partition", "groups": "8"}]
    )
    both = pd.concat([table.assign(null=""), cut], ignore_index=True)
    pd.testing.assert_frame_equal(equal_pairs(both, "groups", margin=0.01), by_groups)


def test_at_equal_cost_the_gap_between_two_straight_lines_is_their_distance():
    # In log2 of the cost: one family 0 + x at x = 0, 2, 4, the other −1 + x at x = 1, 3: 1 apart wherever both are.
    accuracy = {"a0": 0.0, "a2": 2.0, "a4": 4.0, "b1": 0.0, "b3": 2.0}
    table = pd.concat(
        [
            long_table(**{v: [x, x + 5] for v, x in accuracy.items()}).query("measure == 'test_accuracy'"),
            rows_of("parameters", {v: (2.0 ** int(v[1]), "") for v in accuracy}),
        ]
    )
    difference = difference_at_equal_cost(table, ["a4", "a0", "a2"], ["b1", "b3"], "parameters")
    assert difference.tolist() == [pytest.approx(1), pytest.approx(1)]
    assert difference_at_equal_cost(table, ["a0"], ["b1", "b3"], "parameters").empty, "nothing is extrapolated"
    assert difference_at_equal_cost(table, ["a0"], ["c"], "parameters").empty
    assert difference_at_equal_cost(table, ["a2"], ["b1", "b3"], "parameters").tolist() == [pytest.approx(1)] * 2


def test_every_cost_has_its_column_where_measured_or_not():
    table = tradeoff_table(pd.concat([long_table(dense=[0.8]), rows_of("energy", {"dense": (0.25, "")})]))
    assert table["energy"].tolist() == [0.25]
    assert table[["activations", "peak_memory"]].isna().all(axis=None)


def timed(table, **times):
    """The long table with the median and quartiles of each variant's time."""
    rows = [
        {"variant": variant, "seed": None, "layer": "", "measure": f"latency{end}", "value": value}
        for variant, values in times.items()
        for end, value in zip(("_lower", "", "_upper"), values, strict=True)
    ]
    return pd.concat([table, pd.DataFrame(rows)])


def test_a_time_that_was_disturbed_puts_no_variant_surely_on_the_front():
    # As accurate as each other: the faster one is on the front, and which that is is not known.
    table = long_table(dense=[0.8, 0.8], grouped=[0.8, 0.8])
    loud = timed(table, dense=(0.05, 0.061, 0.98), grouped=(0.05, 0.55, 0.6))
    quiet = timed(table, dense=(0.060, 0.061, 0.062), grouped=(0.54, 0.55, 0.56))
    assert disturbed(loud) == ["dense", "grouped"]
    assert disturbed(quiet) == []
    front = front_probability(loud, "latency").set_index("variant")
    assert 0.3 < front.loc["dense", "probability"] < 0.7
    assert front.loc["grouped", "probability"] == pytest.approx(1 - front.loc["dense", "probability"])
    assert front_probability(quiet, "latency").set_index("variant").loc["dense", "probability"] == 1


def test_drawn_times_have_the_quartiles_that_were_measured():
    table = timed(long_table(dense=[0.8, 0.8], grouped=[0.8, 0.8]), dense=(0.5, 0.6, 1.2), grouped=(1.2, 1.2, 1.2))
    # Dense is dearer than 1.2, its upper quartile, in a quarter of the drawings.
    front = front_probability(table, "latency").set_index("variant")
    assert front.loc["dense", "probability"] == pytest.approx(0.75, abs=0.03)
    assert tradeoff_table(table).loc[0, "latency_upper"] == 1.2


def test_below_six_seeds_a_difference_has_its_seeds_and_no_interval():
    row = tradeoff_table(long_table(dense=[0.80, 0.90, 0.85], grouped=[0.79, 0.88, 0.90])).iloc[1]
    assert math.isnan(row["low"]) and math.isnan(row["difference_high"])
    assert (row["least"], row["most"]) == (0.79, 0.90)
    assert (row["difference_least"], row["difference_most"]) == (pytest.approx(-0.02), pytest.approx(0.05))


def test_no_interval_of_an_accuracy_leaves_its_range():
    row = tradeoff_table(long_table(dense=[1.0] * 5 + [0.1])).iloc[0]
    assert row["high"] <= 1
    assert 0 <= row["low"] < row["accuracy"]
