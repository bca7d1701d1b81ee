import numpy as np
import pytest
from scipy import stats

from analysis.colour import colour_difference, colour_difference_test, colour_index, learned, smoothness


def filter_of(rgb, pattern):
    return np.asarray(rgb, dtype=float)[:, None, None] * np.asarray(pattern, dtype=float)


def test_the_colour_index_by_hand():
    pattern = np.outer([1, 2, 1], [-1, 0, 1])
    filters = np.stack(
        [
            filter_of([1, 1, 1], pattern),  # grey
            filter_of([1, -1, 0], pattern),  # red against green
            filter_of([1, 0, 0], pattern),  # red alone: a third of it is grey
        ]
    )
    assert colour_index(filters) == pytest.approx([0, 1, 2 / 3])


def test_noise_looks_coloured_and_is_not_smooth():
    noise = np.random.default_rng(0).normal(size=(2000, 3, 11, 11))
    assert colour_index(noise).mean() == pytest.approx(2 / 3, abs=0.005)
    # Zero-padded 3 x 3 mean of 11 x 11: 81 places keep 1/9 of the energy, 36 keep 6/81, 4 keep 4/81.
    assert smoothness(noise).mean() == pytest.approx((81 * 9 + 36 * 6 + 4 * 4) / 81 / 121, abs=0.002)
    assert not learned(noise).any()


def test_a_broad_stripe_is_learned():
    stripe = filter_of([1, 1, 1], np.cos(np.arange(11) * 2 * np.pi / 11)[None].repeat(11, 0))
    assert learned(stripe[None]).all()


def test_a_filter_of_zeros_has_no_index_and_is_not_learned():
    zeros = np.zeros((1, 3, 5, 5))
    assert np.isnan(colour_index(zeros)).all()
    assert not learned(zeros).any()


def test_filters_that_do_not_read_rgb_are_refused():
    with pytest.raises(ValueError, match="RGB"):
        colour_index(np.zeros((4, 1, 5, 5)))


def test_the_difference_of_two_groups_is_absolute_and_of_several_the_range():
    assert colour_difference([0.1, 0.3, 0.8, 0.6], [0, 0, 1, 1]) == pytest.approx(0.5)
    assert colour_difference([0.8, 0.6, 0.1, 0.3], [0, 0, 1, 1]) == pytest.approx(0.5)
    assert colour_difference([0.1, 0.9, 0.5], [0, 1, 2]) == pytest.approx(0.8)


def test_a_planted_split_is_found_as_exactly_as_permutations_allow():
    colour = [0.1, 0.12, 0.11, 0.9, 0.92, 0.91]
    p = colour_difference_test(colour, [0, 0, 0, 1, 1, 1], permutations=4000)
    assert p == pytest.approx(2 / 20, abs=0.02)  # two of the 20 ways to deal six filters are as extreme


def test_without_a_split_p_is_uniform():
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1, 2], [12, 6, 6])
    p = [colour_difference_test(rng.uniform(size=24), labels, 199, seed=draw) for draw in range(300)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_one_group_has_no_difference():
    with pytest.raises(ValueError, match="two groups"):
        colour_difference_test([0.1, 0.2], [0, 0])
