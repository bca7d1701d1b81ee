import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.frequency import WHITE_CENTROID, tuning


def gabor(frequency, direction, width, size=41):
    """A grating under a Gaussian window of so many pixels, changing in that direction (degrees, rows downward)."""
    down, right = np.mgrid[:size, :size] - (size - 1) / 2
    turn = np.radians(direction)
    phase = 2 * np.pi * frequency * (right * np.cos(turn) + down * np.sin(turn))
    return np.cos(phase) * np.exp(-(right**2 + down**2) / (2 * width**2))


@pytest.mark.parametrize("direction", [0, 30, 45, 90, 135, 170])
@pytest.mark.parametrize(("frequency", "width"), [(0.25, 5), (0.125, 6), (0.2, 3)])
def test_a_gabor_has_the_frequency_and_orientation_it_was_made_with(frequency, width, direction):
    tuned = tuning(gabor(frequency, direction, width)[None, None])
    # Its power is normal about its frequency: the distance from zero is Rice, and E cos 2θ has a closed form.
    spread = 1 / (2 * np.sqrt(2) * np.pi * width)
    assert tuned.centroid == pytest.approx([stats.rice.mean(frequency / spread, scale=spread)], rel=1e-3)
    ratio = spread**2 / frequency**2
    assert tuned.selectivity == pytest.approx([1 - 2 * ratio * (1 - np.exp(-1 / (2 * ratio)))], abs=1e-3)
    assert (tuned.direction[0] - direction + 90) % 180 - 90 == pytest.approx(0, abs=0.05)


def test_white_noise_has_its_theoretical_centroid_and_no_orientation():
    noise = np.random.default_rng(0).normal(size=(400, 3, 11, 11))
    tuned = tuning(noise)
    assert tuned.centroid.mean() == pytest.approx(WHITE_CENTROID, abs=0.002)
    assert tuned.selectivity.mean() < 0.15


def test_the_white_centroid_is_the_mean_distance_in_a_square():
    down, right = np.mgrid[-0.5:0.5:1001j, -0.5:0.5:1001j]
    assert pytest.approx(np.hypot(down, right).mean(), abs=1e-3) == WHITE_CENTROID


def test_a_single_pixel_passes_all_frequencies_alike():
    pixel = np.zeros((1, 1, 5, 5))
    pixel[0, 0, 1, 3] = -2
    tuned = tuning(pixel)
    assert tuned.centroid == pytest.approx([WHITE_CENTROID], abs=1e-4)
    assert tuned.selectivity == pytest.approx([0], abs=1e-9)


def test_stripes_of_either_way_do_not_prefer_one():
    both = np.stack([gabor(0.2, 0, 5), gabor(0.2, 90, 5)])
    assert tuning(both[None]).selectivity == pytest.approx([0], abs=1e-9)


def test_the_mean_of_a_filter_is_power_at_frequency_zero():
    blob, edge = np.ones((9, 9)), np.tile([1.0] * 4 + [0] + [-1] * 4, (9, 1))
    tuned = tuning(np.stack([blob, edge])[:, None])
    assert tuned.centroid[0] < tuned.centroid[1] < WHITE_CENTROID
    assert tuned.direction[1] == pytest.approx(0, abs=1e-6)  # the edge is vertical: it changes to the right


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100))
def test_turning_a_filter_turns_its_direction_and_scaling_it_changes_nothing(seed, scale):
    planes = np.random.default_rng(seed).normal(size=(2, 2, 5, 5))
    tuned, turned = tuning(planes), tuning(scale * np.rot90(planes, axes=(2, 3)))
    assert turned.centroid == pytest.approx(tuned.centroid)
    assert turned.selectivity == pytest.approx(tuned.selectivity)
    assert np.cos(np.radians(2 * (turned.direction - tuned.direction))) == pytest.approx(-np.ones(2), abs=1e-6)


def test_filters_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(O, C, K, K\)"):
        tuning(np.zeros((4, 5, 5)))
