"""Means over seeds as they are drawn: intervals by Student's t, marks of nulls, and their places."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from analysis.figures import by_group, estimates, forest, page

T_975_5 = 2.570582  # 97.5% quantile of Student's t with five degrees of freedom, from a table


@pytest.fixture(autouse=True)
def style():
    page.apply_style()


def test_the_mean_over_seeds_has_the_interval_of_student():
    six = pd.DataFrame({"a": "x", "seed": range(6), "value": [1.0, 3.0] * 3})
    (row,) = estimates.seed_estimates(six, ["a"]).to_dict("records")
    assert (row["mean"], row["n"], row["undefined"]) == (2, 6, 0)
    half = T_975_5 * math.sqrt(6 / 5) / math.sqrt(6)
    assert row["high"] - row["mean"] == pytest.approx(half)
    assert row["mean"] - row["low"] == pytest.approx(half)


def test_below_six_seeds_the_seeds_are_drawn_without_an_interval():
    five = pd.DataFrame({"a": "x", "seed": range(5), "value": [0.0, 1.0, 2.0, 3.0, 4.0]})
    (row,) = estimates.seed_estimates(five, ["a"]).to_dict("records")
    assert math.isnan(row["low"]) and math.isnan(row["high"])
    assert row["seeds"] == (0.0, 1.0, 2.0, 3.0, 4.0)
    _, axes = plt.subplots()
    mark = estimates.marks([""])[""]
    estimates.draw_marks(axes, [7.0], estimates.seed_estimates(five, ["a"]), mark)
    (dots,) = [line for line in axes.lines if line.get_marker() == "."]
    assert np.asarray(dots.get_xdata()).tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert np.asarray(dots.get_ydata()).tolist() == [7.0] * 5
    plt.close()


def test_an_interval_of_a_bounded_value_lies_within_its_bounds():
    areas = pd.DataFrame({"a": "x", "seed": range(6), "value": [1.0, 1.0, 1.0, 1.0, 1.0, 0.4]})
    areas = areas.assign(measure="separation_colour_auc", unit="")
    (row,) = estimates.seed_estimates(areas, ["a"]).to_dict("records")
    assert row["high"] == 1.0  # 0.9 + 2.57 · 0.1 without bounds
    assert row["low"] == pytest.approx(0.9 - T_975_5 * 0.1)


def test_the_seed_is_the_unit_and_undefined_values_are_counted():
    seeds = pd.DataFrame({"a": "x", "seed": [0, 0, 1, 1], "value": [1.0, 3.0, 5.0, np.inf]})
    (row,) = estimates.seed_estimates(seeds, ["a"]).to_dict("records")
    assert (row["mean"], row["n"], row["undefined"]) == (3.5, 2, 1)
    alone = estimates.seed_estimates(seeds[seeds["seed"] == 0], ["a"])
    assert alone[["low", "high"]].isna().all(axis=None)
    assert estimates.seed_estimates(seeds.assign(value=np.nan), ["a"]).empty


def test_the_note_says_what_the_bars_are():
    frame = pd.DataFrame({"n": [1, 1], "undefined": [0, 0]})
    assert estimates.seeds_note(frame) == "One seed: no interval."
    assert estimates.seeds_note(frame.assign(n=3)) == "Dots: the 3 seeds; fewer than 6 have no interval."
    assert estimates.seeds_note(frame.assign(n=8)) == "Bars: 95% interval of the mean over 8 seeds."
    mixed = estimates.seeds_note(frame.assign(n=[1, 6], undefined=[2, 0]))
    assert "1–6 seeds" in mixed
    assert "without a bar has fewer than 6 seeds" in mixed
    assert "2 undefined values are left out" in mixed


def test_a_null_has_the_same_mark_in_every_figure():
    alone, among = estimates.marks(["random filters"]), estimates.marks(["", "untrained", "random filters", "new one"])
    assert alone["random filters"] == among["random filters"]
    assert list(among) == ["", "untrained", "random filters", "new one"]
    assert not among[""].hollow
    assert len({(mark.colour, mark.marker) for mark in among.values()}) == 4


def test_layers_are_left_out_evenly_with_a_note():
    assert estimates.evenly("abcdefghi", 3) == ["a", "e", "i"]
    assert estimates.evenly("ab", 3) == ["a", "b"]
    assert estimates.left_out_note(3, 9, "layers") == " 3 of 9 layers drawn, evenly spaced."
    assert estimates.left_out_note(3, 3, "layers") == ""


def test_marks_are_at_their_values_on_the_row_of_their_variant():
    figure, panel = plt.subplots()
    cells = pd.DataFrame(
        [("b", "", 0.5, 0.25, 0.75, 3), ("a", "untrained", 0.125, np.nan, np.nan, 1)],
        columns=["variant", "null", "mean", "low", "high", "n"],
    )
    marks = estimates.marks(cells["null"])
    forest._draw_panel(panel, cells, ["a", "b"], marks, forest.Quantity("x", 0), (0, 1), 3.5)
    trained, untrained = panel.containers
    assert (trained[0].get_xdata().tolist(), trained[0].get_ydata().tolist()) == ([0.5], [1]), "alone: on its row"
    assert (untrained[0].get_xdata().tolist(), untrained[0].get_ydata().tolist()) == ([0.125], [0])
    (bar,) = trained[2]
    assert bar.get_segments()[0][:, 0].tolist() == [0.25, 0.75]
    assert np.isnan(untrained[2][0].get_segments()).any() or not len(untrained[2][0].get_segments()[0]), "no bar"
    plt.close(figure)


def test_an_interval_longer_than_the_axis_ends_in_an_arrow():
    """Most intervals are 0.2 long, means from 0.1 to 0.4; that of the last reaches from -2 to 2.5."""
    cells = pd.DataFrame({"mean": [0.1, 0.4, 0.25], "low": [0.0, 0.3, -2], "high": [0.2, 0.5, 2.5], "n": 8})
    cells = cells.assign(null="", seeds=[()] * 3)
    low, high = estimates.axis_ends(cells)
    assert -0.4 < low < 0.1 - 0.3, "means spread by 0.3, an interval is cut that far beyond them"
    assert 0.4 + 0.3 < high < 0.9
    assert estimates.axis_ends(cells[:2]) == pytest.approx((0 - 0.04, 0.5 + 0.04)), "intervals alike are whole"
    figure, panel = plt.subplots()
    estimates.draw_side_by_side(panel, [0, 1, 2], cells, "null", estimates.marks([""]), "x", 3, (low, high))
    arrows = {line.get_marker(): line.get_xydata().tolist() for line in panel.lines if line.get_marker() in "<>"}
    assert arrows == {"<": [[low, 2]], ">": [[high, 2]]}
    plt.close(figure)


def test_marks_of_a_place_are_around_its_middle():
    cells = pd.DataFrame({"null": ["", "untrained", ""], "mean": 0.5, "low": np.nan, "high": np.nan, "n": 1})
    figure, panel = plt.subplots()
    estimates.draw_side_by_side(panel, [0, 0, 1], cells, "null", estimates.marks(cells["null"]), "x", 3, (0, 1))
    (trained, alone), (untrained,) = (marks[0].get_ydata() for marks in panel.containers)
    assert trained + untrained == pytest.approx(0) and trained < 0
    assert alone == 1
    plt.close(figure)


def test_groups_are_side_by_side_with_their_numbers():
    figure, panel = plt.subplots()
    here = pd.DataFrame({"group": [1, 12], "series": "", "mean": [0.5, 0.25], "low": np.nan, "high": np.nan, "n": 1})
    by_group.draw_panel(panel, here, estimates.marks([""]), (0, 1))
    (marks,) = panel.containers
    assert marks[0].get_xydata().tolist() == [[0, 0.5], [1, 0.25]]
    assert [text.get_text() for text in panel.get_xticklabels()] == ["1", "12"]
    plt.close(figure)
