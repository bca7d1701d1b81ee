import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.ndimage import gaussian_filter
from torch import nn

from analysis.colour import (
    ReceptiveField,
    TopResponses,
    change_from_initialisation,
    colour_index,
    colour_selectivity,
    concentration,
    first_colour,
    grey_version,
    learned,
    learned_part,
    luminance,
    receptive_field,
    selectivity_index,
    smoothness,
)
from gconv import ChannelShuffle, GroupedConv2d, Partition


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
    assert 0.002 < learned(noise).mean() < 0.02  # one in a hundred


@pytest.mark.parametrize("size", [3, 5, 7, 11])
def test_of_noise_of_any_kernel_and_scale_one_filter_in_a_hundred_passes(size):
    noise = (
        np.random.default_rng(1).uniform(-1, 1, size=(4000, 3, size, size))
        * np.logspace(-6, 2, 4000)[:, None, None, None]
    )
    assert stats.binomtest(int(learned(noise).sum()), 4000, 0.01).pvalue > 1e-4


def grating(size, frequency, phase=0.0):
    return np.cos(2 * np.pi * frequency * np.arange(size) + phase)[None].repeat(size, 0)


def test_the_concentration_by_hand():
    ones = np.ones((8, 8))
    filters = [
        filter_of([0.2, -1, 3], ones),
        filter_of([1, -1, 0], grating(8, 1 / 4)),
        filter_of([1, 1, 1], grating(8, 1 / 2)),
    ]
    one_pixel = np.zeros((8, 8))
    one_pixel[3, 5] = 2
    filters += [filter_of([1, 1, 1], one_pixel), filter_of([1, 1, 1], 3 * ones + np.sqrt(2) * grating(8, 1 / 4))]
    # One component; two of ±f; one at the highest frequency; all alike; energies 9 and 1, the latter in two components.
    assert concentration(np.stack(filters)) == pytest.approx([1, 1 / 2, 1, 1 / 64, 0.81 + 2 * 0.05**2])


@pytest.mark.parametrize("frequency", [0, 0.05, 0.1, 0.2, 0.25, 1 / 3, 0.45, 0.5])
@pytest.mark.parametrize("rgb", [(1, 1, 1), (1, -1, 0), (1, 0.5, -0.2)])
def test_stripes_of_any_frequency_and_colour_are_learned_also_in_noise(frequency, rgb):
    noise = np.random.default_rng(0).normal(size=(200, 3, 11, 11))
    stripes = filter_of(rgb, grating(11, frequency, 0.7))
    stripes = stripes * np.sqrt((noise**2).sum((1, 2, 3), keepdims=True) / (stripes**2).sum())
    assert learned(stripes).all()
    assert learned(stripes + 0.7 * noise).mean() > 0.98


def test_a_kernel_of_one_pixel_has_no_structure_to_judge_by():
    assert learned(np.array([[1, 0, 0], [0, 0, 0]])[:, :, None, None]).tolist() == [True, False]


def test_a_filter_of_zeros_has_no_index_and_is_not_learned():
    zeros = np.zeros((1, 3, 5, 5))
    assert np.isnan(colour_index(zeros)).all()
    assert np.isnan(concentration(zeros)).all()
    assert not learned(zeros).any()


def test_filters_that_do_not_read_rgb_are_refused():
    with pytest.raises(ValueError, match="RGB"):
        colour_index(np.zeros((4, 1, 5, 5)))


PATTERN = np.outer([1, 2, 1], [-1, 0, 1])


@pytest.mark.parametrize(
    ("rgb", "angle"),
    [
        ([1, -1, 0], 0),
        ([1, 0, 0], 30),
        ([0, 1, 1], 30),  # cyan is the opponent of red
        ([1, 0, -1], 60),
        ([0, 0, 1], 90),
        ([5, 5, 4], 90),  # grey does not matter
        ([0, 1, 0], 150),
    ],
    ids=str,
)
def test_the_colour_axis_of_a_filter_by_hand(rgb, angle):
    colour_axes = first_colour(filter_of(rgb, PATTERN)[None])
    assert colour_axes.angle == pytest.approx([angle])
    assert colour_axes.explained == pytest.approx([1])


def test_a_second_colour_takes_its_share_of_the_energy():
    across, along = filter_of([1, -1, 0], PATTERN), filter_of([1, 1, -2], PATTERN.T)
    colour_axes = first_colour((2 * across / np.sqrt(2) + along / np.sqrt(6))[None])
    assert colour_axes.angle == pytest.approx([0])
    assert colour_axes.explained == pytest.approx([4 / 5])
    assert colour_axes.planes[0] == pytest.approx(2 * PATTERN)


def test_the_first_colour_is_the_first_singular_vector_off_the_grey_axis():
    filters = np.random.default_rng(3).normal(size=(50, 3, 5, 5))
    colour_axes = first_colour(filters)
    for weights, angle, explained in zip(filters, colour_axes.angle, colour_axes.explained, strict=True):
        vectors, sizes, _ = np.linalg.svd((weights - weights.mean(0)).reshape(3, -1))
        turn = np.radians(angle)
        axis = np.cos(turn) * np.array([1, -1, 0]) / np.sqrt(2) + np.sin(turn) * np.array([1, 1, -2]) / np.sqrt(6)
        assert abs(axis @ vectors[:, 0]) == pytest.approx(1)
        assert explained == pytest.approx(sizes[0] ** 2 / (sizes**2).sum())


def test_grey_filters_are_marked_and_hold_no_nan():
    grey = filter_of([0.1, 0.1, 0.1], PATTERN).astype(np.float32)
    colour_axes = first_colour(np.stack([grey, 0 * grey, filter_of([1, 1, 1.001], PATTERN)]))
    assert colour_axes.coloured.tolist() == [False, False, True]
    assert colour_axes.angle[:2].tolist() == colour_axes.explained[:2].tolist() == [0, 0]
    assert not colour_axes.planes[:2].any()


def test_energy_is_luminance_and_colour():
    filters = np.random.default_rng(4).normal(size=(20, 3, 7, 7))
    energy = (filters**2).sum((1, 2, 3))
    colour_axes = first_colour(filters)
    grey, first = (luminance(filters) ** 2).sum((1, 2)), (colour_axes.planes**2).sum((1, 2))
    assert grey + first / colour_axes.explained == pytest.approx(energy)
    assert colour_index(filters) == pytest.approx(1 - grey / energy)
    assert not luminance(filter_of([1, -1, 0], PATTERN)[None]).any()


def test_the_change_from_initialisation_by_hand():
    start = np.array([[1.0, -1, 2, -2]] * 4).reshape(4, 1, 2, 2)
    end = np.array([[0.5, -0.5, 1, -1], [-1, 1, -2, 2], [2, -2, -1, 1], [3, 3, 3, 3]], dtype=float).reshape(4, 1, 2, 2)
    change = change_from_initialisation(end, start)
    assert change.distance == pytest.approx([0.5, 2, np.sqrt(2), np.sqrt(4 + 16 + 1 + 25) / np.sqrt(10)])
    assert change.correlation == pytest.approx([1, -1, 0, np.nan], nan_ok=True)


def test_change_needs_the_same_layer_and_a_start():
    with pytest.raises(ValueError, match="same layer"):
        change_from_initialisation(np.ones((2, 3)), np.ones((3, 3)))
    with pytest.raises(ValueError, match="filter 1 starts from zero"):
        change_from_initialisation(np.ones((2, 3)), np.array([[1.0, 2, 3], [0, 0, 0]]))


def test_a_grey_crop_is_its_own_grey_version():
    crop = np.random.default_rng(5).uniform(size=(1, 4, 6)).repeat(3, 0)
    assert grey_version(crop) == pytest.approx(crop)


def test_the_grey_version_of_a_colour_contrast_keeps_its_shape():
    shape = np.array([[1, -1], [-1, 1], [1, 1], [-1, -1]])
    crop = 0.5 + np.array([0.25, -0.25, 0])[:, None, None] * shape  # red against green, no brightness: R − G = ± ½
    assert grey_version(crop) == pytest.approx(np.broadcast_to(0.5 + 0.25 * shape, (3, 4, 2)))


def test_the_grey_version_of_a_uniform_colour_is_its_brightness():
    assert grey_version(np.full((3, 2, 2), 0.0) + np.array([0.9, 0.3, 0])[:, None, None]) == pytest.approx(0.4)


@given(st.integers(0, 2**32 - 1))
def test_a_grey_version_is_grey_and_an_image(seed):
    crop = np.random.default_rng(seed).uniform(size=(3, 3, 5)).round()  # saturated colours leave the range
    red, green, blue = grey_version(crop)
    assert (red == green).all() and (green == blue).all()
    assert 0 <= red.min() <= red.max() <= 1


def test_the_selectivity_index_by_hand():
    selectivity = selectivity_index([[4, 2, 0], [1, 1, 0], [-1, 0, 0]], [[1, 3, 9], [-5, 0.5, 0], [1, 1, 1]])
    assert selectivity.index == pytest.approx([1 - 4 / 6, 1 - 0.5 / 2, np.nan], nan_ok=True)
    assert selectivity.clipped == pytest.approx([(0.75 + 0) / 2, (1 + 0.5) / 2, np.nan], nan_ok=True)
    assert selectivity.silent == 1


@pytest.mark.parametrize("grey", [[[1.0, 2.0]], [[np.nan]]], ids=["shape", "nan"])
def test_responses_that_do_not_fit_have_no_index(grey):
    with pytest.raises(ValueError, match="of the same crops"):
        selectivity_index([[1.0]], grey)


def test_the_top_responses_are_those_of_all_images_however_they_are_batched():
    x = torch.randint(0, 9, (40, 5, 3, 4), generator=torch.Generator().manual_seed(0)).double()  # many ties
    peaks = x.flatten(2).amax(2).T.numpy()
    for size in (1, 7, 40):
        top_responses = TopResponses(6)
        for part in x.split(size):
            top_responses.add(part)
        top = top_responses.top
        assert (top.image == np.argsort(-peaks, axis=1, kind="stable")[:, :6]).all()
        assert (top.response == np.take_along_axis(peaks, top.image, 1)).all()
        filters = np.arange(5)[:, None]
        assert (x.numpy()[top.image, filters, top.row, top.column] == top.response).all()


def test_fewer_images_than_crops_give_as_many_as_there_are():
    top_responses = TopResponses(10)
    top_responses.add(torch.ones(3, 2, 1, 1))
    assert top_responses.top.response.shape == (2, 3)
    with pytest.raises(ValueError, match="no responses"):
        _ = TopResponses(1).top
    with pytest.raises(ValueError, match="count=0"):
        TopResponses(0)


def alexnet_trunk():
    def pool():
        return nn.MaxPool2d(3, 2)

    return {
        "conv1": nn.Sequential(nn.Conv2d(3, 4, 11, 4), nn.BatchNorm2d(4), nn.ReLU()),
        "pool1": pool(),
        "conv2": GroupedConv2d(4, 4, 5, padding=2, groups=2),
        "pool2": nn.Sequential(nn.ReLU(), pool()),
        "conv3": nn.Conv2d(4, 4, 3, padding="same"),
        "conv4": nn.Conv2d(4, 4, 3, padding=1),
        "conv5": nn.Conv2d(4, 4, 3, padding=1),
        "pool5": pool(),
    }


def test_the_receptive_fields_of_alexnet():
    layers = alexnet_trunk()
    fields = [receptive_field(list(layers.values())[: depth + 1]) for depth in range(len(layers))]
    assert [field.size for field in fields] == [11, 19, 51, 67, 99, 131, 163, 195]
    assert [field.stride for field in fields] == [4, 8, 8, 16, 16, 16, 16, 32]
    assert [field.padding for field in fields] == [0, 0, 16, 16, 32, 48, 64, 64]


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(3, 2, 5, stride=3)],
        [nn.Conv2d(3, 2, 3, stride=2, padding=2), nn.AvgPool2d(3, 2, padding=1), nn.Conv2d(2, 1, 2, dilation=2)],
        [GroupedConv2d(3, 4, 4, padding="same"), ChannelShuffle(Partition.uniform(4, 2)), nn.AvgPool2d(2)],
    ],
    ids=["one layer", "padding and dilation", "even kernel"],
)
def test_a_unit_reads_its_window_and_nothing_else(layers):
    image = torch.rand(1, 3, 19, 19, dtype=torch.double, requires_grad=True)
    response = nn.Sequential(*layers).double()(image)[0, 0]
    field = receptive_field(layers)
    for row in range(response.shape[0]):
        read = torch.autograd.grad(response[row, 1], image, retain_graph=True)[0][0].abs().sum(0) > 0
        down, right = field.window(row, 1)
        rows, columns = (torch.nonzero(read.any(axis)).flatten().tolist() for axis in (1, 0))
        assert (rows[0], rows[-1]) == (down.start, min(down.stop, 19) - 1)
        assert (columns[0], columns[-1]) == (right.start, min(right.stop, 19) - 1)


@pytest.mark.parametrize(
    ("layer", "why"),
    [(nn.AdaptiveAvgPool2d(1), "is not known"), (nn.Conv2d(3, 2, (3, 5)), "alike either way")],
    ids=str,
)
def test_an_unknown_receptive_field_is_refused(layer, why):
    with pytest.raises(ValueError, match=why):
        receptive_field([nn.Conv2d(3, 3, 3), layer])


def network(filters_O3KK, **arguments):
    weight = torch.as_tensor(np.array(filters_O3KK), dtype=torch.double)
    return lambda x: torch.relu(nn.functional.conv2d(x, weight, **arguments))


def taken(images):
    return lambda index: images[torch.as_tensor(index)]


def run_index(respond, images, field, count=4):
    top_responses = TopResponses(count)
    for part in images.split(3):
        top_responses.add(respond(part))
    return colour_selectivity(respond, taken(images), top_responses.top, field, batch=5)


def test_a_brightness_filter_has_index_0_and_an_opponent_filter_1():
    torch.manual_seed(0)
    respond = network([filter_of([1, 1, 1], PATTERN), filter_of([1, -1, 0], PATTERN)])
    grey = torch.rand(9, 1, 8, 8, dtype=torch.double).expand(-1, 3, -1, -1)
    colour = torch.rand(9, 3, 8, 8, dtype=torch.double)
    field = ReceptiveField(3, 1, 0)
    of_grey = run_index(respond, grey, field)
    assert (of_grey.index[0], of_grey.clipped[0]) == pytest.approx((0, 0), abs=1e-9)
    of_colour = run_index(respond, colour, field)
    assert (of_colour.index[1], of_colour.clipped[1]) == pytest.approx((1, 1), abs=1e-9)
    assert 0 < of_colour.index[0] < 1  # the first component of a coloured crop is not its brightness


def test_filters_of_one_pixel_have_the_index_of_their_colour():
    # One pixel has no component to vary along: its grey version is its brightness, a third of a pure red.
    respond = network(np.array([[1, 0, 0], [1, 1, 1], [2, 1, 0], [0, 1, 0]])[:, :, None, None])
    red = torch.tensor([1.0, 0, 0], dtype=torch.double)[:, None, None].expand(2, 3, 4, 4)
    selectivity = run_index(respond, red, ReceptiveField(1, 1, 0))
    assert selectivity.index == pytest.approx([2 / 3, 0, 1 / 2, np.nan], nan_ok=True)
    assert selectivity.silent == 1


def test_the_index_agrees_with_one_computed_crop_by_crop():
    rng = np.random.default_rng(6)
    filters, images = rng.normal(size=(3, 3, 3, 3)), rng.uniform(size=(8, 3, 7, 7))
    selectivity = run_index(
        network(filters, stride=2, padding=1), torch.from_numpy(images.copy()), ReceptiveField(3, 2, 1)
    )
    for weights, index in zip(filters, selectivity.index, strict=True):
        best = []
        for image in images:
            units = []
            for row, column in np.ndindex(4, 4):  # 7 pixels and one of padding either side
                padded = np.zeros((3, 9, 9))
                padded[:, 1:8, 1:8] = image
                colour = (padded[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3] * weights).sum()
                inside = (slice(max(2 * row - 1, 0), 2 * row + 2), slice(max(2 * column - 1, 0), 2 * column + 2))
                padded[:, 1:8, 1:8][:, *inside] = grey_version(image[:, *inside])
                grey = (padded[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3] * weights).sum()
                units.append((max(colour, 0), max(grey, 0)))
            best.append(max(units))
        colour, grey = np.array(sorted(best, reverse=True)[:4]).T
        assert index == pytest.approx(1 - grey.sum() / colour.sum())


def test_the_learned_part_is_what_is_left_without_the_initialisation():
    """A filter that only grew has learned nothing; one that began as zero, all; else the part at right angles."""
    rng = np.random.default_rng(0)
    start = rng.normal(size=(4, 3, 5, 5))
    start[2] = 0
    other = rng.normal(size=(3, 5, 5))
    other -= (other * start[1]).sum() / (start[1] ** 2).sum() * start[1]
    other *= np.sqrt((start[1] ** 2).sum() / (other**2).sum())
    end = np.stack([7 * start[0], 3 * start[1] + 4 * other, np.ones((3, 5, 5)), np.zeros((3, 5, 5))])
    part = learned_part(end, start)
    np.testing.assert_allclose(part.energy[:3], [0, 16 / 25, 1], atol=1e-12)
    assert np.isnan(part.energy[3])
    np.testing.assert_allclose(part.filters[1], 4 * other, atol=1e-12)
    with pytest.raises(ValueError, match="same layer"):
        learned_part(end, start[:2])


def test_growth_alone_leaves_no_colour_in_the_learned_part():
    """Grey filters learned on a coloured initialisation: their own index depends on how much they grew, theirs not."""
    rng = np.random.default_rng(1)
    start = rng.normal(size=(200, 3, 7, 7))
    grey = np.repeat(gaussian_filter(rng.normal(size=(200, 1, 7, 7)), (0, 0, 1, 1)), 3, axis=1)
    growth = np.repeat([2.0, 20.0], 100)[:, None, None, None]
    end = start + growth * grey
    own, of_learned = colour_index(end), colour_index(learned_part(end, start).filters)
    assert own[:100].mean() - own[100:].mean() > 0.1
    assert abs(of_learned[:100].mean() - of_learned[100:].mean()) < 0.02
