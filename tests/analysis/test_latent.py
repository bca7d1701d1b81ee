import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import adjusted_rand_score

from analysis.latent import agreement, associations, coupling, factors, spectral_groups


def spearman(x, y):
    return abs(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])


def centred(values, mass):
    """Values of weighted mean 0 and weighted mean square 1."""
    values = values - np.average(values, weights=mass)
    return values / np.sqrt(np.average(values**2, weights=mass))


def planted(rng, readers=30, read=20, strengths=(0.2, 0.1)):
    """A coupling of known factors on filters of any strength: r c (1 + Σ s x y), x and y orthonormal under r and c."""
    row, column = rng.uniform(0.5, 2, readers), rng.uniform(0.5, 2, read)
    sides = []
    for mass in (row, column):
        first = centred(np.linspace(-1, 1, mass.size), mass)
        second = centred(np.where(np.arange(mass.size) % 2, 1.0, -1.0), mass)
        sides.append([first, centred(second - np.average(first * second, weights=mass) * first, mass)])
    matrix = np.ones((readers, read))
    for strength, x, y in zip(strengths, *sides, strict=True):
        matrix += strength * np.outer(x, y)
    assert (matrix > 0).all()
    return np.outer(row, column) * matrix, *sides


def test_coupling_sums_absolute_weights():
    weight = np.array([[[[1.0, -2], [0, 3]], [[0, 0], [0, -1]]]])
    assert coupling(weight).tolist() == [[6, 1]]
    with pytest.raises(ValueError, match=r"\(O, C, K, K\)"):
        coupling(weight[0])


def test_planted_factors_are_recovered_whatever_the_strength_of_the_filters():
    matrix, (x1, x2), (y1, y2) = planted(np.random.default_rng(0))
    recovered = factors(matrix, 3)
    assert recovered.explained == pytest.approx([0.8, 0.2, 0])
    for factor, of_readers, of_read in ((0, x1, y1), (1, x2, y2)):
        assert abs(np.corrcoef(recovered.readers[factor], of_readers)[0, 1]) == pytest.approx(1)
        assert abs(np.corrcoef(recovered.read[factor], of_read)[0, 1]) == pytest.approx(1)
        sign = np.sign(recovered.read[factor] @ of_read)
        assert np.corrcoef(recovered.readers[factor], sign * of_readers)[0, 1] == pytest.approx(
            1
        )  # a pair has one sign
        assert recovered.read[factor, np.abs(recovered.read[factor]).argmax()] > 0
    assert not recovered.read[2].any()


def test_the_raw_singular_vector_tells_only_the_strength_of_the_filters():
    matrix, _, (y1, _) = planted(np.random.default_rng(1))
    raw = np.linalg.svd(matrix)[2][0]
    assert abs(np.corrcoef(raw, matrix.sum(0))[0, 1]) > 0.95
    assert spearman(factors(matrix, 1).read[0], y1) == pytest.approx(1)


def test_unconnected_filters_have_no_coordinate():
    matrix, _, _ = planted(np.random.default_rng(2))
    holed = np.insert(np.insert(matrix, 4, 0, axis=0), 0, 0, axis=1)
    recovered, whole = factors(holed), factors(matrix)
    assert np.isnan(recovered.readers[:, 4]).all() and np.isnan(recovered.read[:, 0]).all()
    assert recovered.read[:, 1:] == pytest.approx(whole.read)
    assert recovered.explained == pytest.approx(whole.explained)


@pytest.mark.parametrize(
    ("matrix", "count", "why"),
    [
        (np.ones((4, 3)), 3, "3 factors of 4 × 3 connected filters: must be 1 to 2"),
        (-np.ones((4, 3)), 1, "nowhere negative"),
        (np.ones((4, 3, 1)), 1, "nowhere negative"),
    ],
    ids=["too many", "negative", "shape"],
)
def test_what_has_no_factors_is_refused(matrix, count, why):
    with pytest.raises(ValueError, match=why):
        factors(matrix, count)


def test_the_planted_attributes_are_found_in_their_factors():
    matrix, _, (y1, y2) = planted(np.random.default_rng(3))
    read = factors(matrix).read
    first, second = associations(read, np.exp(y1))  # rank correlation does not mind the scale
    assert (first.value, first.p, first.n, first.note) == (pytest.approx(1), pytest.approx(1e-4), 20, "")
    assert second.value == pytest.approx(spearman(y2, y1))
    first, second = associations(read, y2 > 0)
    assert second.value == pytest.approx(spearman(y2, y2 > 0))
    assert first.p is not None and first.p > 0.05


def test_an_unrelated_attribute_has_uniform_p():
    rng = np.random.default_rng(4)
    read = factors(rng.uniform(size=(40, 24)), 2).read
    p = [associations(read, rng.normal(size=24), permutations=199, seed=draw)[0].p for draw in range(500)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_what_does_not_correlate_says_why():
    read = np.array([[1.0, 2, 3, math.nan], [0, 0, 0, 0]])
    first, second = associations(read, [1, 3, 2, 4])
    assert (first.value, first.n, first.note) == (pytest.approx(0.5), 3, "1 of 4 filters left out")
    assert (second.p, second.note) == (None, "all values equal: no correlation; 1 of 4 filters left out")
    assert associations(read, [1, 3, 2, 4], kept=[1, 1, 0, 1])[0].note.startswith("2 filters: no correlation")
    assert associations(read, [math.nan] * 4)[0].note.startswith("0 filters: no correlation")
    with pytest.raises(ValueError, match="of the same filters"):
        associations(read, [1, 2, 3])


@pytest.mark.parametrize("sizes", [[8, 8], [6, 6, 6, 6], [16, 8, 4, 4]], ids=str)
def test_imposed_groups_are_found_as_spectral_groups(sizes):
    rng = np.random.default_rng(5)
    readers, read = np.repeat(np.arange(len(sizes)), np.array(sizes) * 2), np.repeat(np.arange(len(sizes)), sizes)
    order, other = rng.permutation(readers.size), rng.permutation(read.size)
    readers, read = readers[order], read[other]
    weight = (
        rng.normal(size=(readers.size, read.size, 3, 3)) * np.where(readers[:, None] == read, 1, 0.1)[..., None, None]
    )
    groups_of_both = spectral_groups(coupling(weight), len(sizes))
    for labels, imposed in zip(groups_of_both, (readers, read), strict=True):
        result = agreement(labels, imposed)
        assert result.value == pytest.approx(1)
        assert result.p is not None and result.p < 0.001
    names = dict(zip(groups_of_both[1], read, strict=True))
    assert [names[label] for label in groups_of_both[0]] == readers.tolist()  # group k reads group k


def test_spectral_groups_are_the_same_every_time_and_leave_out_the_unconnected():
    matrix = np.random.default_rng(6).uniform(size=(12, 10))
    matrix[3], matrix[:, 7] = 0, 0
    readers, read = spectral_groups(matrix, 3, seed=1)
    assert (np.flatnonzero(readers < 0).tolist(), np.flatnonzero(read < 0).tolist()) == ([3], [7])
    again = spectral_groups(matrix, 3, seed=1)
    assert (again[0] == readers).all() and (again[1] == read).all()
    with pytest.raises(ValueError, match="10 groups of 11 × 9 connected filters: must be 2 to 9"):
        spectral_groups(matrix, 10)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=2, max_size=8))
def test_the_adjusted_rand_index_agrees_with_scikit_learn(labels):
    first, second = zip(*labels, strict=True)
    assert agreement(first, second).value == pytest.approx(adjusted_rand_score(first, second))


def test_agreement_by_hand_and_without_some_filters():
    result = agreement([0, 0, 1, 1, -1], [5, 5, 7, 7, 5])
    assert result.value == pytest.approx(1)
    assert result.p == pytest.approx(2 / 6)
    assert result.note == "p cannot fall below 0.167; 1 of 5 filters left out"
    with pytest.raises(ValueError, match="none of 2 filters"):
        agreement([0, -1], [-1, 0])
    with pytest.raises(ValueError, match="same filters"):
        agreement([0, 1], [0, 1, 1])


def test_independent_partitions_agree_no_more_often_than_chance():
    rng = np.random.default_rng(7)
    labels = np.repeat([0, 1], 4)
    p = np.array([agreement(rng.permutation(labels), labels).p for _ in range(500)], dtype=float)
    # Of the 70 ways to deal, 2 agree in full, 34 in half or better: exactly these p are possible.
    assert set(np.unique(p)) <= {2 / 70, 34 / 70, 1.0}
    assert (p == 2 / 70).mean() == pytest.approx(2 / 70, abs=0.025)
