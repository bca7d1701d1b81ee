import numpy as np
import pytest
from scipy import stats

from analysis.correlation import GroupContrast, contrast_test, correlation_matrix, group_contrast, mean_contrast

CORR = np.array(
    [
        [1.0, 0.8, 0.1, -0.2],
        [0.8, 1.0, 0.3, 0.0],
        [0.1, 0.3, 1.0, -0.6],
        [-0.2, 0.0, -0.6, 1.0],
    ]
)


def test_the_contrast_by_hand():
    contrast = group_contrast(CORR, [0, 0, 1, 1])
    assert contrast.within == pytest.approx((0.8 + 0.6) / 2)
    assert contrast.between == pytest.approx((0.1 + 0.2 + 0.3 + 0.0) / 4)
    assert contrast.ratio == pytest.approx(0.7 / 0.15)
    assert contrast.difference == pytest.approx(0.55)
    assert (contrast.filters, contrast.dead) == (4, 0)


def test_unequal_groups_pool_their_pairs():
    contrast = group_contrast(CORR, [0, 0, 0, 1])
    assert contrast.within == pytest.approx((0.8 + 0.1 + 0.3) / 3)
    assert contrast.between == pytest.approx((0.2 + 0.0 + 0.6) / 3)


def test_the_order_of_filters_and_the_names_of_groups_do_not_matter():
    order = np.array([2, 0, 3, 1])
    ours = group_contrast(CORR[np.ix_(order, order)], np.array([7, 7, 5, 5])[order])
    assert ours.within == pytest.approx(0.7)
    assert ours.between == pytest.approx(0.15)


def test_one_group_has_no_between_and_lone_filters_no_within():
    assert np.isnan(group_contrast(CORR, [0, 0, 0, 0]).between)
    assert np.isnan(group_contrast(CORR, [0, 1, 2, 3]).within)
    with pytest.raises(ValueError, match="no contrast"):
        contrast_test(CORR, [0, 0, 0, 0])


def test_groups_that_do_not_correlate_have_an_infinite_ratio():
    block = np.kron(np.eye(2), np.full((3, 3), 0.37)) + 0.63 * np.eye(6)
    contrast = group_contrast(block, [0, 0, 0, 1, 1, 1])
    assert contrast.between == 0
    assert contrast.ratio == np.inf
    assert np.isnan(group_contrast(np.eye(4), [0, 0, 1, 1]).ratio)


def test_dead_filters_are_left_out_and_counted():
    cov = np.diag([1.0, 4.0, 0.0, 9.0])
    cov[0, 1] = cov[1, 0] = 1.0
    corr = correlation_matrix(cov)
    assert corr[0, 1] == pytest.approx(0.5)
    assert np.isnan(corr[2]).all()
    contrast = group_contrast(corr, [0, 0, 1, 1])
    assert (contrast.filters, contrast.dead) == (3, 1)
    assert contrast.within == pytest.approx(0.5)


def test_the_mean_over_the_draws_of_a_null_is_a_contrast_too():
    mean = mean_contrast([GroupContrast(0.4, 0.1, 8, 0), GroupContrast(0.2, 0.2, 6, 2)])
    assert (mean.within, mean.between) == (pytest.approx(0.3), pytest.approx(0.15))
    assert (mean.filters, mean.dead) == (7, 1)
    with pytest.raises(ValueError, match="needs a draw"):
        mean_contrast([])


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        group_contrast(CORR, [0, 1])


def planted(rng, strength):
    """Responses of 12 filters in groups of 8 and 4; filters of a group share a source."""
    labels = np.repeat([0, 1], [8, 4])
    sources = rng.normal(size=(2, 400))
    responses = strength * sources[labels] + rng.normal(size=(12, 400))
    return np.corrcoef(responses), labels


def test_planted_groups_are_found_with_the_correlation_that_theory_gives():
    corr, labels = planted(np.random.default_rng(0), strength=1.0)
    assert group_contrast(corr, labels).within == pytest.approx(0.5, abs=0.05)  # 1 / (1 + 1)
    assert group_contrast(corr, labels).between < 0.1
    assert contrast_test(corr, labels, permutations=999) <= 0.005


def test_on_exchangeable_filters_p_is_uniform():
    rng = np.random.default_rng(1)
    p = [contrast_test(*planted(rng, strength=0.0), permutations=199, seed=draw) for draw in range(500)]
    assert stats.kstest(p, "uniform").pvalue > 0.01
