import numpy as np
import pytest
import torch
from scipy import stats
from scipy.linalg import sqrtm
from scipy.stats import ortho_group
from torch import nn

from analysis.interlayer import BlockEnergy, block_energy, whitened_covariance
from analysis.responses import collect_pairs
from analysis.similarity import canonical_correlations, moments
from gconv import GroupedConv2d


def covariance_of(rng, features):
    root = rng.normal(size=(features, features + 2))
    return root @ root.T


def test_a_rotated_layer_whitens_to_the_rotation():
    """X₂ = Q X₁: Σ^-½ (Σ Qᵀ) (Q Σ Qᵀ)^-½ = Qᵀ, whatever Σ."""
    rng = np.random.default_rng(0)
    cov, rotation = covariance_of(rng, 5), ortho_group.rvs(5, random_state=1)
    covariance = whitened_covariance(cov, rotation @ cov @ rotation.T, cov @ rotation.T, 100, standardise=False)
    np.testing.assert_allclose(covariance.matrix, rotation.T, atol=1e-9)
    assert (covariance.ranks, covariance.dead, covariance.dependent) == ((5, 5), (0, 0), (0, 0))


def test_it_is_the_formula_of_the_thesis_on_the_samples_themselves():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4, 300)) * 3 + 1
    y = rng.normal(size=(3, 4)) @ x + rng.normal(size=(3, 300))
    joint = np.cov(np.vstack([x, y]))
    centred = [side - side.mean(1, keepdims=True) for side in (x, y)]
    white = [np.linalg.inv(np.real(sqrtm(np.cov(side)))) @ side for side in centred]
    matrix = whitened_covariance(joint[:4, :4], joint[4:, 4:], joint[:4, 4:], 300, standardise=False).matrix
    np.testing.assert_allclose(matrix, white[0] @ white[1].T / 299, atol=1e-9)


def test_its_singular_values_are_the_canonical_correlations():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(200, 4))
    y = x[:, :3] @ rng.normal(size=(3, 5)) + rng.normal(size=(200, 5))
    of = moments(np.hstack([x, y]))
    cov = of.covariance
    matrix = whitened_covariance(cov[:4, :4], cov[4:, 4:], cov[:4, 4:], 200).matrix
    expected = canonical_correlations(of, np.arange(4), np.arange(4, 9)).correlations
    np.testing.assert_allclose(np.linalg.svd(matrix, compute_uv=False), expected, atol=1e-9)


def test_dead_and_dependent_filters_are_counted_and_not_inflated():
    """Filters a, 2a and b: the first pair has one direction, (1, 2)/√5, which is whitened to variance 1."""
    first = np.zeros((4, 4))
    first[:3, :3] = [[1, 2, 0], [2, 4, 0], [0, 0, 9]]
    second = np.diag([1.0, 9.0])
    cross = np.zeros((4, 2))
    cross[0, 0], cross[1, 0], cross[2, 1] = 1, 2, 9
    covariance = whitened_covariance(first, second, cross, 50, standardise=False)
    assert (covariance.ranks, covariance.dead, covariance.dependent) == ((2, 2), (1, 0), (1, 0))
    expected = [[1 / 5**0.5, 0], [2 / 5**0.5, 0], [0, 1], [np.nan, np.nan]]
    np.testing.assert_allclose(covariance.matrix, expected, atol=1e-12)


def test_too_few_samples_are_refused_with_what_they_make_unreliable():
    eye = np.eye(3)
    with pytest.raises(ValueError, match=r"6 samples of 3 and 3 filters: whitening needs 7.*reliable"):
        whitened_covariance(eye, eye, eye, 6)
    whitened_covariance(eye, eye, eye, 7)


def test_what_cannot_be_whitened_is_refused():
    eye = np.eye(2)
    with pytest.raises(ValueError, match="do not fit"):
        whitened_covariance(eye, np.eye(3), eye, 50)
    with pytest.raises(ValueError, match="none of the 2 filters"):
        whitened_covariance(eye, np.zeros((2, 2)), np.zeros((2, 2)), 50)
    with pytest.raises(ValueError, match="finite"):
        whitened_covariance(eye, eye, np.full((2, 2), np.nan), 50)


def planted_network():
    """White inputs → conv1, which mixes them within four pairs → mean of 2 × 2 pixels → conv2 in two groups of 4."""
    torch.manual_seed(0)
    conv1 = GroupedConv2d(8, 8, 1, groups=4, bias=False)
    return nn.Sequential(conv1, nn.AvgPool2d(2), GroupedConv2d(8, 8, 1, groups=2, bias=False))


def test_planted_blocks_are_found_with_the_energy_that_theory_gives():
    """A mean of four white pixels has the covariance ¼ Σ with each and ¼ Σ itself: the whitened covariance is ½ Q,
    Q orthogonal within either group, so its square sums to ¼ · 8, all of it on the two blocks, half of the area.
    """
    model, x = planted_network(), torch.randn(400, 8, 8, 8)
    pair = collect_pairs(model, x.split(100), [("0", "2")])["0", "2"]
    covariance = whitened_covariance(
        pair.first.covariance, pair.second.covariance, pair.cross_covariance, pair.distinct
    ).matrix
    labels = np.repeat([0, 1], 4)
    energy = block_energy(covariance, labels, labels)
    np.testing.assert_allclose(np.linalg.svd(covariance, compute_uv=False), 0.5, atol=0.02)
    assert (covariance**2).sum() == pytest.approx(2, rel=0.03)
    assert energy.squared == pytest.approx(1, abs=0.005)
    assert energy.chance == 0.5
    assert energy.test.p == pytest.approx(1 / 70)  # the best of 8! / (4! 4!) ways to deal the labels


def test_block_energy_by_hand():
    matrix = np.array([[3.0, 1.0, 0.0], [1.0, -2.0, 1.0]])
    energy = block_energy(matrix, [0, 1], [0, 1, 1])
    assert energy.squared == pytest.approx((9 + 4 + 1) / 16)
    assert energy.absolute == pytest.approx((3 + 2 + 1) / 8)
    assert energy.chance == pytest.approx(3 / 6)
    assert energy.test.value == pytest.approx(energy.squared)
    assert energy.test.p == pytest.approx(1 / 2)


def test_filters_of_no_group_and_dead_ones_take_no_part():
    matrix = np.array([[3.0, 1.0, np.nan, 5.0], [1.0, 2.0, np.nan, 5.0], [9.0, 9.0, np.nan, 9.0]])
    energy = block_energy(matrix, [0, 1, -1], [0, 1, 1, -1])
    assert energy.squared == pytest.approx(13 / 15)
    assert energy.left_out == (1, 2)


def test_groups_of_the_first_layer_that_nothing_reads_are_off_the_blocks():
    assert block_energy(np.ones((3, 2)), [0, 1, 5], [0, 1]).squared == pytest.approx(2 / 6)
    assert block_energy(np.ones((3, 2)), [0, 1, 5], [0, 1]).chance == pytest.approx(2 / 6)


def test_one_group_has_no_null_and_says_so():
    assert "one group" in block_energy(np.ones((3, 2)), [0, 0, 0], [0, 0]).test.note


def test_labels_that_link_nothing_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        block_energy(np.ones((3, 2)), [0, 1], [0, 1])
    with pytest.raises(ValueError, match=r"groups \[1, 2\] and \[3, 4\] of the two layers: none is linked"):
        block_energy(np.ones((2, 2)), [0, 1], [2, 3])
    with pytest.raises(ValueError, match="all covariances are zero"):
        block_energy(np.zeros((2, 2)), [0, 1], [0, 1])


def test_on_layers_without_blocks_p_is_uniform():
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1], 4)  # 70 ways to deal them
    p = [block_energy(rng.normal(size=(8, 6)), labels, [0, 0, 0, 1, 1, 1]).test.p for _ in range(500)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_the_scale_of_a_filter_moves_no_energy():
    """Two groups of two filters each; one filter is put out a hundred times fainter."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(4, 500))
    x[1] += 0.8 * x[0]
    y = np.vstack([x[:2] + rng.normal(size=(2, 500)), x[2:] + rng.normal(size=(2, 500))])

    def energy(scale):
        scaled = np.vstack([x * np.array([[scale], [1], [1], [1]]), y])
        joint = np.cov(scaled)
        matrix = whitened_covariance(joint[:4, :4], joint[4:, 4:], joint[:4, 4:], 500).matrix
        return block_energy(matrix, [0, 0, 1, 1], [0, 0, 1, 1])

    assert energy(0.01).squared == pytest.approx(energy(1).squared, abs=1e-9)
    assert energy(1).squared > 0.9


@pytest.mark.parametrize(("groups", "energy", "share"), [(2, 0.750, 0.5), (4, 0.630, 0.5067), (8, 0.570, 0.5086)])
def test_the_share_beyond_chance_has_no_ceiling_that_depends_on_the_number_of_groups(groups, energy, share):
    """Energies of the thesis; the shares by hand: (.63 − .25) / .75 = .5067."""
    block = BlockEnergy(energy, energy, 1 / groups, (0, 0), lambda: pytest.fail("permuted"))
    assert block.share == pytest.approx(share, abs=1e-4)
