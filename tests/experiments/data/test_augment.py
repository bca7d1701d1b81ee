import colorsys

import pytest
import torch
from torch import Generator

from experiments.data.augment import Views, cut_out, evaluation_batch, grey, normalise, training_batch, turn_hues


def seeded(seed=0):
    return Generator().manual_seed(seed)


def numbered(count=6, size=8):
    """Images whose every pixel tells where it is: image, row, column."""
    image, row, column = torch.meshgrid(torch.arange(count), torch.arange(size), torch.arange(size), indexing="ij")
    return torch.stack([image, row, column], -1).to(torch.uint8)


def test_random_crops_are_windows_of_the_right_images():
    index = torch.tensor([4, 1, 1, 5])
    x = training_batch(numbered(), index, Views(image_size=8, crop_size=5, flip=False), seeded())
    assert x.shape == (4, 3, 5, 5)
    assert x.is_contiguous(memory_format=torch.channels_last)
    corners = set()
    for crop, image in zip(x, index, strict=True):
        assert (crop[0] == image).all()
        top, left = crop[1, 0, 0].item(), crop[2, 0, 0].item()
        assert torch.equal(crop[1], (top + torch.arange(5, dtype=torch.uint8))[:, None].expand(5, 5))
        assert torch.equal(crop[2], (left + torch.arange(5, dtype=torch.uint8))[None].expand(5, 5))
        corners.add((top, left))
    assert len(corners) > 1


def test_half_of_the_crops_are_mirrored():
    x = training_batch(numbered(), torch.zeros(400, dtype=torch.long), Views(image_size=8, crop_size=8), seeded())
    mirrored = (x[:, 2, 0, 0] > x[:, 2, 0, -1]).float().mean().item()
    assert mirrored == pytest.approx(0.5, abs=0.08)


def test_padding_mirrors_the_border():
    views = Views(image_size=8, crop_size=8, padding=3, flip=False)
    x = training_batch(numbered(), torch.zeros(200, dtype=torch.long), views, seeded())
    assert {int(v) for v in x[:, 1, 0, 0]} == {0, 1, 2, 3}  # rows -3…3 mirror onto 3, 2, 1, 0, 1, 2, 3


def test_a_seed_gives_the_same_batch():
    views = Views(image_size=8, crop_size=6, cutout=2, colour="hue-scrambled")
    first, again, other = (training_batch(numbered(), torch.arange(6), views, seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_testing_takes_the_centre():
    x = evaluation_batch(numbered(), torch.tensor([2]), Views(image_size=8, crop_size=4))
    assert x[0, 1, :, 0].tolist() == [2, 3, 4, 5]
    wide = evaluation_batch(numbered(), torch.tensor([2]), Views(image_size=8, crop_size=10, padding=1))
    assert wide[0, 1, :, 5].tolist() == [1, 0, 1, 2, 3, 4, 5, 6, 7, 6]


def test_grey_is_the_luma_in_all_channels():
    x = torch.tensor([100.0, 50.0, 200.0]).view(1, 3, 1, 1)
    assert grey(x).flatten().tolist() == pytest.approx([0.299 * 100 + 0.587 * 50 + 0.114 * 200] * 3, abs=0.05)


def test_scrambling_turns_hues_and_keeps_luma_and_greys():
    x = torch.rand(50, 3, 4, 4, generator=seeded()) * 100 + 50
    y = turn_hues(x, torch.rand(50, generator=seeded(1)))
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    torch.testing.assert_close((y * weights).sum(1), (x * weights).sum(1), rtol=1e-3, atol=0.05)
    red = torch.tensor([200.0, 60.0, 60.0]).view(1, 3, 1, 1).expand(64, 3, 1, 1)
    turned = (turn_hues(red, torch.arange(64) / 64) / 255).clamp(0, 1).flatten(1)
    hues = [colorsys.rgb_to_hsv(*pixel)[0] for pixel in turned.tolist()]
    assert max(hues) - min(hues) > 0.7
    flat = torch.full((4, 3, 2, 2), 80.0)
    torch.testing.assert_close(turn_hues(flat, torch.rand(4)), flat, rtol=1e-3, atol=0.1)


def test_an_image_is_tested_in_the_same_hues_whatever_batch_it_is_in():
    views = Views(image_size=8, crop_size=8, colour="hue-scrambled")
    together = evaluation_batch(numbered(), torch.arange(6), views)
    assert torch.equal(together[3:5], evaluation_batch(numbered(), torch.tensor([3, 4]), views))
    assert not torch.equal(together[0], evaluation_batch(numbered(), torch.tensor([1]), views)[0])


@pytest.mark.parametrize("colour", ["grey", "hue-scrambled"])
def test_the_colour_controls_reach_training_and_testing(colour):
    views = Views(image_size=8, crop_size=8, flip=False, colour=colour)
    for x in (
        training_batch(numbered(), torch.arange(6), views, seeded()),
        evaluation_batch(numbered(), torch.arange(6), views),
    ):
        plain = numbered().permute(0, 3, 1, 2).float()
        assert not torch.allclose(x, plain)
        torch.testing.assert_close(grey(x), grey(plain), rtol=1e-3, atol=0.01)


def test_cutout_greys_one_square():
    x = torch.zeros(30, 3, 9, 9)
    centres = (torch.randint(9, (30, 1), generator=seeded(seed)) for seed in range(2))
    y = cut_out(x, 3, *centres)
    areas = (y[:, 0] == 128).flatten(1).sum(1)
    assert areas.max() == 9
    assert areas.min() >= 4, "a square centred in a corner is cut by the border"
    assert torch.equal(y[:, 0], y[:, 2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_normalising_centres_and_scales_and_leaves_the_source_alone(dtype):
    x = torch.randint(0, 255, (4, 3, 5, 5), dtype=torch.uint8)
    before = x.clone()
    mean, std = torch.tensor([100.0, 110.0, 120.0]), torch.tensor([50.0, 60.0, 70.0])
    y = normalise(x, mean, std, dtype)
    expected = (x.double() - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    floats = x.float()
    normalise(floats, mean, std, dtype)
    assert torch.equal(floats, before.float())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"crop_size": 40}, ["data.crop_size=40", "data.image_size=32"]),
        ({"padding": 32}, ["data.padding=32"]),
        ({"cutout": -1}, ["data.cutout=-1"]),
        ({"image_size": 0}, ["data.image_size=0"]),
    ],
    ids=str,
)
def test_views_that_cannot_be_are_named(arguments, words):
    with pytest.raises(ValueError) as error:
        Views(**arguments)
    for word in words:
        assert word in str(error.value)
