from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import procrustes as scipy_procrustes
from scipy.stats import kstest, ortho_group

from analysis.similarity import (
    MomentStatistics,
    between_groups,
    biased_cka,
    canonical_correlations,
    compare,
    mean_between,
    mean_cca,
    moments,
    procrustes,
    pwcca,
    random_splits,
    unbiased_cka,
)
from analysis.stats import null_p

MEASURES = [biased_cka, unbiased_cka, mean_cca, pwcca, procrustes]
SYMMETRIC = [biased_cka, unbiased_cka, mean_cca, procrustes]


def gram_hsic(x, y):
    """Unbiased HSIC as it is written in the papers, on S × S matrices."""
    n, ones = len(x), np.ones(len(x))
    k, m = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    sums = (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
    return (np.trace(k @ m) + sums - 2 * (ones @ k @ m @ ones) / (n - 2)) / (n * (n - 3))


def gram_cka(x, y):
    return gram_hsic(x, y) / np.sqrt(gram_hsic(x, x) * gram_hsic(y, y))


def columns(*sizes):
    ends = np.cumsum([0, *sizes])
    return [np.arange(a, b) for a, b in pairwise(ends)]


def correlated(rng, samples, p, q):
    """Two sets of features with some variance in common, off centre and of uneven size."""
    x = rng.normal(size=(samples, p)) * rng.uniform(0.5, 2, p) + rng.normal(size=p)
    y = x @ rng.normal(size=(p, q)) + rng.normal(size=(samples, q)) + 3
    return x, y


def published_pair():
    rng = np.random.RandomState(1337)
    x = rng.randn(100, 10)
    return x, rng.randn(100, 10) + x


def test_linear_cka_of_the_published_check():
    assert compare(biased_cka, *published_pair()) == pytest.approx(0.55761, abs=5e-6)


def test_biased_cka_is_the_centred_gram_formula():
    x, y = correlated(np.random.default_rng(0), 40, 5, 3)
    centre = np.eye(40) - 1 / 40
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    assert compare(biased_cka, x, y) == pytest.approx((k * m).sum() / np.linalg.norm(k) / np.linalg.norm(m))


@pytest.mark.parametrize(("samples", "p", "q"), [(4, 1, 1), (7, 3, 2), (100, 10, 10), (30, 60, 45), (50, 1, 8)])
def test_unbiased_cka_is_the_gram_formula(samples, p, q):
    x, y = correlated(np.random.default_rng(samples), samples, p, q)
    assert compare(unbiased_cka, x, y) == pytest.approx(gram_cka(x, y), rel=1e-8)
    of = moments(np.hstack([x, y]))
    assert of.hsic[np.ix_(*columns(p, q))].sum() == pytest.approx(gram_hsic(x, y), rel=1e-8)


def test_random_features_in_excess_of_samples_look_alike_to_the_biased_estimate_alone():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(100, 400)), rng.normal(size=(100, 300))
    assert compare(biased_cka, x, y) > 0.7
    assert abs(compare(unbiased_cka, x, y)) < 0.05


def test_hsic_has_no_bias():
    """For Gaussian features with covariance c the HSIC of linear kernels is c²; six samples suffice on average."""
    rng = np.random.default_rng(2)
    root = np.array([[1.0, 0.0], [0.6, 0.8]])
    draws = np.array([moments(rng.normal(size=(6, 2)) @ root.T).hsic for _ in range(1500)])
    error = draws.std(0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(0) - np.array([[1.0, 0.36], [0.36, 1.0]])) < 4 * error).all()


def test_streamed_moments_do_not_depend_on_the_batches():
    rng = np.random.default_rng(3)
    x = torch.tensor(rng.normal(size=(20, 6, 3, 2)) + np.linspace(-50, 50, 20)[:, None, None, None])
    statistics = MomentStatistics()
    for part in x.split([1, 3, 16]):  # sorted: the first batch lies far from the mean
        statistics.add(part)
    samples = x.movedim(1, -1).flatten(0, -2).numpy()
    streamed = statistics.moments
    assert streamed.samples == statistics.responses.count == 120
    np.testing.assert_allclose(streamed.covariance, np.cov(samples.T), rtol=1e-9)
    expected = [[gram_hsic(samples[:, [i]], samples[:, [j]]) for j in range(6)] for i in range(6)]
    np.testing.assert_allclose(streamed.hsic, expected, rtol=1e-7)


def qr_cca(x, y):
    """Canonical correlations and the canonical variates of x, through the QR decomposition."""
    qx, qy = (np.linalg.qr(side - side.mean(0))[0] for side in (x, y))
    u, rho, _ = np.linalg.svd(qx.T @ qy, full_matrices=False)
    return rho, qx @ u


@pytest.mark.parametrize(("p", "q"), [(4, 4), (6, 3), (2, 5), (1, 1)])
def test_canonical_correlations_are_those_of_the_qr_decomposition(p, q):
    x, y = correlated(np.random.default_rng(7), 200, p, q)
    rho, variates = qr_cca(x, y)
    canonical = canonical_correlations(moments(np.hstack([x, y])), *columns(p, q))
    np.testing.assert_allclose(canonical.correlations, rho, rtol=1e-8)
    alpha = np.abs(variates.T @ (x - x.mean(0))).sum(1)
    np.testing.assert_allclose(canonical.weights, alpha / alpha.sum(), rtol=1e-6)
    assert compare(mean_cca, x, y) == pytest.approx(rho.mean())
    assert compare(pwcca, x, y) == pytest.approx((alpha * rho).sum() / alpha.sum())
    assert (canonical.ranks, canonical.dead, canonical.dependent) == ((p, q), (0, 0), (0, 0))


def test_procrustes_is_scipys():
    x, y = correlated(np.random.default_rng(8), 60, 5, 5)
    assert compare(procrustes, x, y) == pytest.approx(np.sqrt(1 - scipy_procrustes(x, y)[2]))
    narrow = y[:, :3]
    padded = np.hstack([narrow, np.zeros((60, 2))])
    assert compare(procrustes, x, narrow) == pytest.approx(np.sqrt(1 - scipy_procrustes(x, padded)[2]))


def test_between_two_single_features_all_is_their_correlation():
    x, y = correlated(np.random.default_rng(9), 300, 1, 1)
    r = abs(np.corrcoef(x[:, 0], y[:, 0])[0, 1])
    for measure in (mean_cca, pwcca, procrustes):
        assert compare(measure, x, y) == pytest.approx(r)
    assert compare(biased_cka, x, y) == pytest.approx(r**2)


def test_a_planted_shared_subspace_has_the_similarity_that_theory_gives():
    """In common k features of standard deviation σ; a and b more of the one and the other, of standard deviation 1."""
    rng, k, a, b, sigma = np.random.default_rng(10), 4, 6, 12, 1.5
    shared = sigma * rng.normal(size=(40_000, k))
    x = np.hstack([shared, rng.normal(size=(40_000, a))]) @ ortho_group.rvs(k + a, random_state=1)
    y = np.hstack([shared, rng.normal(size=(40_000, b))]) @ ortho_group.rvs(k + b, random_state=2)
    cka = k * sigma**4 / np.sqrt((k * sigma**4 + a) * (k * sigma**4 + b))
    assert compare(unbiased_cka, x, y) == pytest.approx(cka, abs=0.01)
    assert compare(biased_cka, x, y) == pytest.approx(cka, abs=0.01)
    assert compare(mean_cca, x, y) == pytest.approx(k / (k + a), abs=0.02)
    expected = k * sigma**2 / np.sqrt((k * sigma**2 + a) * (k * sigma**2 + b))
    assert compare(procrustes, x, y) == pytest.approx(expected, abs=0.04)


def test_projection_weights_follow_the_size_of_the_responses():
    rng = np.random.default_rng(11)
    shared = rng.normal(size=(50_000, 1))
    x = np.hstack([3 * shared, rng.normal(size=(50_000, 1))])
    y = np.hstack([shared, rng.normal(size=(50_000, 1))])
    assert compare(pwcca, x, y) == pytest.approx(3 / 4, abs=0.02)  # weights 3 and 1, correlations 1 and 0
    assert compare(pwcca, y, x) == pytest.approx(1 / 2, abs=0.02)


seeds = st.integers(0, 10_000)
widths = st.integers(1, 6)


@settings(max_examples=25)
@given(seeds, widths, widths, st.sampled_from([1e-15, 1e-3, 1.0, 7.0, 1e15]))
def test_rotations_scalings_and_shifts_change_no_cka_and_no_procrustes(seed, p, q, scale):
    rng = np.random.default_rng(seed)
    x, y = correlated(rng, 40, p, q)
    rotation = np.linalg.qr(rng.normal(size=(p, p)))[0]
    for measure in (biased_cka, unbiased_cka, procrustes):
        assert compare(measure, scale * (x @ rotation + 1), y) == pytest.approx(compare(measure, x, y), rel=1e-6)


@settings(max_examples=25)
@given(seeds, widths, widths)
def test_invertible_maps_change_no_canonical_correlation(seed, p, q):
    rng = np.random.default_rng(seed)
    x, y = correlated(rng, 40, p, q)
    left, right = ((np.linalg.qr(rng.normal(size=(n, n)))[0] * rng.uniform(0.1, 10, n)) for n in (p, q))
    left = left @ np.linalg.qr(rng.normal(size=(p, p)))[0]
    assert compare(mean_cca, x @ left, y @ right) == pytest.approx(compare(mean_cca, x, y), rel=1e-6)
    assert compare(pwcca, x, y @ right) == pytest.approx(compare(pwcca, x, y), rel=1e-6)


@settings(max_examples=25)
@given(seeds, widths, widths)
def test_measures_stay_in_their_range(seed, p, q):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(14, p)), rng.normal(size=(14, q))
    for measure in MEASURES:
        assert (-1 if measure is unbiased_cka else 0) <= compare(measure, x, y) <= 1 + 1e-12
        assert compare(measure, x, x) == pytest.approx(1)
    for measure in SYMMETRIC:
        assert compare(measure, x, y) == pytest.approx(compare(measure, y, x))


def test_canonical_correlations_of_too_few_samples_are_refused():
    rng = np.random.default_rng(12)
    with pytest.raises(ValueError, match=r"of 6 and 5 features need 12 samples at least, not 11: .*unbiased CKA"):
        compare(mean_cca, rng.normal(size=(11, 6)), rng.normal(size=(11, 5)))
    assert compare(mean_cca, rng.normal(size=(12, 6)), rng.normal(size=(12, 5))) < 1


def test_dead_and_dependent_features_are_left_out_and_counted():
    x, y = correlated(np.random.default_rng(13), 100, 3, 4)
    worse = np.hstack([x, np.full((100, 2), 7.0), x[:, :1] + x[:, 1:2]])
    canonical = canonical_correlations(moments(np.hstack([worse, y])), *columns(6, 4))
    assert (canonical.ranks, canonical.dead, canonical.dependent) == ((3, 4), (2, 0), (1, 0))
    np.testing.assert_allclose(canonical.correlations, qr_cca(x, y)[0], rtol=1e-7)
    dead = np.hstack([x, np.zeros((100, 2))])
    for measure in MEASURES:
        assert compare(measure, dead, y) == pytest.approx(compare(measure, x, y))


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.__name__)
def test_a_set_without_a_living_feature_is_refused(measure):
    x = np.random.default_rng(14).normal(size=(20, 2))
    with pytest.raises(ValueError, match="none of 3 features varies"):
        compare(measure, x, np.full((20, 3), 0.1))


def test_features_that_fire_once_have_no_unbiased_cka():
    x = np.random.default_rng(15).normal(size=(20, 2))
    with pytest.raises(ValueError, match="single samples"):
        compare(unbiased_cka, np.eye(20)[:, :1], x)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.ones((3, 2)), np.ones((3, 2)), "four samples, not 3"),
        (np.ones((5, 2)), np.ones((4, 2)), "same samples"),
        (np.ones(5), np.ones((5, 2)), "same samples"),
        (np.full((5, 1), np.nan), np.ones((5, 2)), "finite"),
    ],
)
def test_responses_that_cannot_be_compared_are_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        compare(biased_cka, x, y)


def test_nothing_collected_is_said():
    with pytest.raises(ValueError, match="four samples, not 0"):
        _ = MomentStatistics().moments


def test_groups_are_compared_two_by_two():
    rng = np.random.default_rng(16)
    x = rng.normal(size=(80, 9)) @ rng.normal(size=(9, 9))
    labels = np.array([4, 0, 0, 4, 2, -1, 2, 4, 0])
    similarity = between_groups(moments(x), labels, pwcca)
    assert similarity.shape == (3, 3)
    np.testing.assert_allclose(np.diag(similarity), 1)
    assert similarity[0, 2] == pytest.approx(compare(pwcca, x[:, labels == 0], x[:, labels == 4]))
    assert similarity[2, 0] == pytest.approx(compare(pwcca, x[:, labels == 4], x[:, labels == 0]))
    with pytest.raises(ValueError, match="do not fit 9 features"):
        between_groups(moments(x), [0, 1], pwcca)


def test_the_mean_between_groups_by_hand():
    similarity = np.array([[1.0, 0.2], [0.4, 1.0]])
    assert mean_between(similarity) == pytest.approx(0.3)
    np.testing.assert_allclose(mean_between(np.stack([similarity, similarity / 2])), [0.3, 0.15])
    with pytest.raises(ValueError, match="two, not 1"):
        mean_between(np.ones((1, 1)))


def test_random_splits_take_disjoint_living_features_of_the_sizes_asked_for():
    x = np.random.default_rng(17).normal(size=(30, 8))
    x[:, 3] = 0
    seen = []

    def spy(of, first, second):
        seen.append((first, second))
        return biased_cka(of, first, second)

    null = random_splits(moments(x), [4, 2, 1], spy, draws=20, seed=1)
    assert null.shape == (20, 3, 3)
    assert {(len(first), len(second)) for first, second in seen} == {(4, 2), (4, 1), (2, 4), (2, 1), (1, 4), (1, 2)}
    assert all(not set(first) & set(second) and 3 not in {*first, *second} for first, second in seen)
    assert {int(column) for first, _ in seen for column in first} == {0, 1, 2, 4, 5, 6, 7}
    np.testing.assert_array_equal(null, random_splits(moments(x), [4, 2, 1], biased_cka, draws=20, seed=1))
    with pytest.raises(ValueError, match=r"\[4, 4\] features cannot be drawn from 7 that vary"):
        random_splits(moments(x), [4, 4], biased_cka, draws=2)


def test_an_arbitrary_split_of_a_dense_layer_is_no_finding():
    rng, p = np.random.default_rng(18), []
    for draw in range(500):
        x = rng.normal(size=(60, 12)) @ rng.normal(size=(12, 12))
        of, labels = moments(x), np.repeat([0, 1], [8, 4])
        null = mean_between(random_splits(of, [8, 4], unbiased_cka, draws=49, seed=draw))
        p.append(null_p(float(mean_between(between_groups(of, labels, unbiased_cka))), null, "less"))
    assert kstest(p, "uniform").pvalue > 0.01


def test_groups_that_share_nothing_lie_below_the_splits_of_a_dense_layer():
    rng = np.random.default_rng(19)
    sources = rng.normal(size=(400, 2))
    grouped = moments(np.repeat(sources, 6, axis=1) + 0.3 * rng.normal(size=(400, 12)))
    dense = moments(sources @ rng.normal(size=(2, 12)) + 0.3 * rng.normal(size=(400, 12)))
    observed = mean_between(between_groups(grouped, np.repeat([0, 1], 6), unbiased_cka))
    null = mean_between(random_splits(dense, [6, 6], unbiased_cka, draws=199))
    assert abs(observed) < 0.05
    assert null_p(float(observed), null, "less") == pytest.approx(1 / 200)
