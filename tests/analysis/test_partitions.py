import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.correlation import correlation_matrix, group_contrast
from analysis.partitions import null_partitions, sized_spectral_partition, spectral_partition


def same_cut(labels, expected):
    """Return True if two labellings are the same but for the names of the groups."""
    return np.array_equal(labels[:, None] == labels, np.asarray(expected)[:, None] == np.asarray(expected))


def planted(sizes, seed=0, within=0.6, between=0.1):
    """Correlations of filters in groups of the given sizes, signs and order at random."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    corr = np.where(labels[:, None] == labels, within, between)
    np.fill_diagonal(corr, 1)
    sign = rng.choice([-1, 1], len(labels))
    return corr * np.outer(sign, sign), labels


@pytest.mark.parametrize("sizes", [(8, 8), (6, 6, 6, 6), (8, 4, 2, 2), (16, 8, 4, 4)], ids=str)
def test_planted_groups_are_found(sizes):
    corr, labels = planted(sizes)
    assert same_cut(spectral_partition(corr, len(sizes)), labels)
    labels_of_clusters = sized_spectral_partition(corr, sizes)
    assert same_cut(labels_of_clusters, labels)
    assert np.bincount(labels_of_clusters).tolist() == list(sizes)


def test_a_graph_in_pieces_is_cut_into_them():
    corr, labels = planted((4, 4, 4), between=0.0)
    assert same_cut(spectral_partition(corr, 3), labels)
    assert same_cut(sized_spectral_partition(corr, [4, 4, 4]), labels)


def test_every_null_has_the_contrast_that_theory_gives():
    corr, _ = planted((4, 4))
    nulls = null_partitions(corr, [4, 4], draws=2000)
    overall = (2 * 6 * 0.6 + 16 * 0.1) / 28  # a pair is as often within as between, whatever its |r|
    random = nulls["arbitrary partition"]
    assert random.labels.shape == (2000, 8)
    assert random.contrast.within == pytest.approx(overall, abs=0.008)
    assert random.contrast.between == pytest.approx(overall, abs=0.008)
    for name in ("spectral partition", "spectral partition, sizes kept"):
        assert nulls[name].contrast.within == pytest.approx(0.6)
        assert nulls[name].contrast.between == pytest.approx(0.1)
        assert nulls[name].note == ""
    contiguous = nulls["contiguous partition"]
    assert contiguous.labels.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]
    assert contiguous.contrast == group_contrast(corr, [0, 0, 0, 0, 1, 1, 1, 1])


def test_spectral_sizes_that_differ_are_said_and_kept_on_demand():
    corr, labels = planted((9, 3))
    nulls = null_partitions(corr, [6, 6], draws=2)
    free, kept = nulls["spectral partition"], nulls["spectral partition, sizes kept"]
    assert same_cut(free.labels[0], labels)
    assert "instead of [6, 6]" in free.note
    assert np.bincount(kept.labels[0]).tolist() == [6, 6]
    # The six hold all three of the small group, and three of the nine.
    small = np.bincount(kept.labels[0][labels == 1], minlength=2)
    assert sorted(small.tolist()) == [0, 3]


@settings(max_examples=10)
@given(sizes=st.lists(st.integers(1, 7), min_size=2, max_size=4), seed=st.integers(0, 99), dead=st.integers(0, 2))
def test_sizes_are_kept_whatever_the_correlations(sizes, seed, dead):
    sizes = [*sizes, dead + 2]
    count = sum(sizes)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 50))
    x[rng.choice(count, dead, replace=False)] = 0
    corr = correlation_matrix(np.cov(x))
    assert np.bincount(sized_spectral_partition(corr, sizes), minlength=len(sizes)).tolist() == sizes
    for cut in ("arbitrary partition", "contiguous partition", "spectral partition, sizes kept"):
        null = null_partitions(corr, sizes, draws=3)[cut]
        assert all(np.bincount(row, minlength=len(sizes)).tolist() == sizes for row in null.labels)
        assert (null.contrast.filters, null.contrast.dead) == (count - dead, dead)


def test_dead_filters_are_in_no_spectral_group():
    corr, labels = planted((5, 5))
    corr[3] = corr[:, 3] = np.nan
    labels_of_clusters = spectral_partition(corr, 2)
    assert labels_of_clusters[3] == -1
    assert same_cut(np.delete(labels_of_clusters, 3), np.delete(labels, 3))


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match=r"add up to 8"):
        null_partitions(np.eye(8), [4, 3])
    with pytest.raises(ValueError, match="each have one"):
        sized_spectral_partition(np.eye(8), [8, 0])
    with pytest.raises(ValueError, match="4 filters that vary cannot be clustered into 4"):
        spectral_partition(np.eye(4), 4)
    with pytest.raises(ValueError, match=r"\(C, C\)"):
        spectral_partition(np.ones((2, 3)), 2)
