import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import normalized_mutual_info_score, roc_auc_score

from analysis.colour import colour_index, learned
from analysis.frequency import tuning
from analysis.separation import separation

NAMES = ["difference", "eta_squared", "auc", "information"]


def found_in(values, labels, **arguments):
    separated = separation(values, labels, **{"permutations": 199, **arguments})
    return {name: getattr(separated, name) for name in NAMES}


def test_a_perfect_split_by_hand():
    separated = separation([1, 2, 3, 4, 5, 6], [0, 0, 0, 1, 1, 1])
    assert (separated.sizes, separated.means) == ({0: 3, 1: 3}, {0: 2, 1: 5})
    assert separated.difference.value == pytest.approx(3)
    assert separated.eta_squared.value == pytest.approx(13.5 / 17.5)
    assert separated.auc.value == pytest.approx(1)
    assert separated.information.value == pytest.approx(1)
    for name in NAMES:  # two of the 20 ways to deal six filters are as extreme
        assert getattr(separated, name).p == pytest.approx(0.1, abs=0.01)
        assert getattr(separated, name).note == "p cannot fall below 0.1"


def test_several_groups_by_hand():
    statistics = found_in([0, 1, 1, 3, 2, 4], [2, 2, 0, 0, 1, 1])
    # Means 0.5, 2, 3 about 11/6; pairs of groups: 3.5 of 4, 4 of 4, and 3 of 4 filters of one beat the other's.
    assert statistics["difference"].value == pytest.approx(2.5)
    grand = 11 / 6
    between = 2 * ((0.5 - grand) ** 2 + (2 - grand) ** 2 + (3 - grand) ** 2)
    assert statistics["eta_squared"].value == pytest.approx(between / (31 - 6 * grand**2))
    assert statistics["auc"].value == pytest.approx((3.5 / 4 + 1 + 3 / 4) / 3)


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_the_statistics_agree_with_independent_ones(seed, ties):
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [9, 14])
    values = rng.integers(0, 5, 23).astype(float) if ties else rng.normal(size=23)
    statistics = found_in(values, labels, permutations=1)
    if np.ptp(values) == 0:
        return
    assert statistics["difference"].value == pytest.approx(abs(values[labels == 0].mean() - values[labels == 1].mean()))
    area = float(roc_auc_score(labels, values))
    assert statistics["auc"].value == pytest.approx(max(area, 1 - area))
    eta = statistics["eta_squared"].value
    f = stats.f_oneway(values[labels == 0], values[labels == 1]).statistic
    assert eta / ((1 - eta) / 21) == pytest.approx(f)
    if not ties:
        information = normalized_mutual_info_score(labels, values >= np.median(values))
        assert statistics["information"].value == pytest.approx(information, abs=1e-12)


def test_three_groups_are_binned_in_three():
    values, labels = np.arange(12.0), np.array([0, 0, 0, 1, 1, 1, 1, 0, 2, 2, 2, 2])
    assert found_in(values, labels)["information"].value == pytest.approx(
        normalized_mutual_info_score(labels, np.repeat([0, 1, 2], 4))
    )
    assert found_in(values, np.repeat([5, 1, 3], 4))["information"].value == pytest.approx(1)


def test_equal_values_share_a_bin():
    labels = np.repeat([0, 1], [7, 3])
    for values in (labels, 1 - labels):  # the median lies on most of the values, from above or from below
        assert found_in(values, labels)["information"].value == pytest.approx(1)


@pytest.mark.parametrize("sizes", [(20, 20), (20, 10, 5, 5)], ids=str)
def test_without_a_split_p_is_uniform(sizes):
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    draws = [found_in(rng.normal(size=40), labels, seed=draw) for draw in range(500)]
    p = {name: np.array([draw[name].p for draw in draws], dtype=float) for name in NAMES}
    for name in ("difference", "eta_squared", "auc"):
        assert stats.kstest(p[name], "uniform").pvalue > 0.01
    # The information takes few values, and ties count against it: p is at most too large.
    for alpha in (0.05, 0.2, 0.5):
        assert (p["information"] <= alpha).mean() <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / 500)


def planted(rng):
    """Sixteen grey stripes, sixteen coloured blobs, four filters of noise in each half."""
    down, right = np.mgrid[:11, :11] - 5
    window = np.exp(-(down**2 + right**2) / 18)
    stripes = [np.ones((3, 1, 1)) * window * np.cos(np.pi / 4 * right + phase) for phase in rng.uniform(0, 6, 16)]
    blobs = [(colour - colour.mean())[:, None, None] * window for colour in rng.normal(size=(16, 3))]
    noise = list(rng.normal(size=(8, 3, 11, 11)))
    return np.array(stripes + noise[:4] + blobs + noise[4:]), np.repeat([0, 1], 20)


def test_planted_colours_and_frequencies_are_recovered():
    filters, labels = planted(np.random.default_rng(2))
    index, kept = colour_index(filters), learned(filters)
    separated = separation(index, labels, kept)
    assert separated.sizes == {0: 16, 1: 16}
    assert separated.means == pytest.approx({0: 0, 1: 1})
    assert [getattr(separated, name).value for name in NAMES] == pytest.approx([1, 1, 1, 1])
    assert separated.difference.p == pytest.approx(1 / 10_000)
    assert separated.difference.note == "of 40 filters left out: 8 by rule"
    frequency = separation(tuning(filters).centroid, labels, kept)
    assert frequency.auc.value == 1
    assert frequency.means[0] == pytest.approx(0.125, abs=0.02)


@pytest.mark.parametrize(
    ("values", "labels", "why"),
    [
        ([], [], "no filter took part"),
        ([1, 2, 3], [4, 4, 4], "all filters that took part are of group 5"),
        ([1, 2, 3], [4, 4, -1], "all filters that took part are of group 5"),
        ([1, 2, 3], [0, 1, 2], "groups of one filter: nothing to permute"),
        ([2, 2, 2, 2], [0, 0, 1, 1], "all values equal: nothing to test"),
    ],
    ids=["none", "one group", "one known group", "single filters", "equal"],
)
def test_what_cannot_be_tested_says_why(values, labels, why):
    for inference in found_in(values, labels).values():
        assert inference.p is None
        assert why in inference.note
        assert math.isnan(inference.value) == ("took part" in why)


def test_what_was_left_out_is_counted():
    separated = separation([1, math.nan, 3, 4, 5, 6], [0, 0, 1, 1, -1, 1], kept=[1, 1, 1, 1, 1, 0])
    assert separated.sizes == {0: 1, 1: 2}
    note = "of 6 filters left out: 1 by rule, 1 of no one group, 1 without the attribute"
    assert separated.auc.note == f"group 1: one filter; p cannot fall below 0.333; {note}"


def test_values_and_labels_must_be_of_the_same_filters():
    with pytest.raises(ValueError, match="one of each per filter"):
        separation([1, 2, 3], [0, 1])


@pytest.mark.parametrize(
    ("values", "split"),
    [
        (np.r_[np.linspace(0.0, 0.2, 8), np.linspace(0.5, 0.7, 8)], True),
        (np.r_[np.linspace(0.0, 0.02, 8), np.linspace(0.05, 0.07, 8)], False),  # as clear, by .05 only
        (np.r_[0.0:0.8:0.1, 0.05:0.8:0.1] + np.repeat([0.0, 0.11], 8), False),  # by .16, within chance
    ],
)
def test_a_split_is_clear_and_large(values, split):
    """The third: differences of neighbours of .05 against steps of .1; by Mann and Whitney p = .28."""
    assert separation(values, np.repeat([0, 1], 8), permutations=999).is_split is split
