import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import nn

from analysis.lesion import class_accuracy, lesions, silenced


def colour_network():
    """Filter 0 takes luminance, filter 1 red − green; class 1 if luminance + 3 (red − green) > 0.

    On images of −1 to 1. Ties go to class 0.
    """
    features = nn.Conv2d(3, 2, 1, bias=False)
    features.weight.data = torch.tensor([[1.0, 1.0, 1.0], [0.5, -0.5, 0.0]]).view(2, 3, 1, 1)
    head = nn.Linear(2, 2, bias=False)
    head.weight.data = torch.tensor([[0.0, 0.0], [1.0, 3.0]])
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def images(rows):
    return torch.tensor(rows).view(-1, 3, 1, 1).expand(-1, 3, 2, 2)


# Luminance of either sign; colour overrules it in the last two, whose classes luminance would get wrong.
COLOUR = images([[0.2, 0.2, 0.2], [-0.2, -0.2, -0.2], [0.9, -0.9, -0.2], [-0.9, 0.9, 0.2]])
GREY = COLOUR.mean(1, keepdim=True).expand_as(COLOUR)
LABELS = torch.tensor([1, 0, 1, 0])


def batches(x):
    return list(zip(x.split(3), LABELS.split(3), strict=True))


def test_a_colour_group_takes_colour_away_and_leaves_grey():
    """Without colour luminance decides: 2 of 4 right. Without luminance the two grey images tie, to class 0."""
    assert class_accuracy(colour_network(), batches(COLOUR))[0].tolist() == [2, 2]
    assert class_accuracy(colour_network(), batches(GREY))[0].tolist() == [1, 1]
    grey_group, colour_group = lesions(colour_network(), "0", [0, 1], batches(COLOUR), batches(GREY), draws=12)
    assert (colour_group.colour_drop, colour_group.grey_drop, colour_group.interaction) == (0.5, 0.0, 0.5)
    assert colour_group.class_drop.tolist() == [0.5, 0.5]
    # Intact on grey: images 0 and 1 right. Luminance silenced, all are class 0: 1 and 3 right.
    assert (grey_group.colour_drop, grey_group.grey_drop, grey_group.interaction) == (0.25, 0.0, 0.25)
    assert grey_group.class_drop.tolist() == [0.0, 0.5]
    # Sets of one filter are one of the two groups.
    assert colour_group.null_interaction.shape == (12,)
    assert set(colour_group.null_interaction) == {0.25, 0.5}
    share = (colour_group.null_interaction == 0.5).sum()
    assert colour_group.p == pytest.approx(min(1, 2 * (1 + share) / 13))


def test_every_filter_silenced_leaves_one_class():
    (all_of_it,) = lesions(colour_network(), "0", [7, 7], batches(COLOUR), batches(GREY), draws=1)
    assert (all_of_it.group, all_of_it.filters) == (7, 2)
    assert all_of_it.class_drop.tolist() == [0, 1]
    assert all_of_it.null_colour_drop.tolist() == [0.5]


def test_the_mean_is_that_of_the_images_shown():
    """One filter, x; class 1 if x > 0.5. Colour images have the mean 1, grey ones 0: all are class 1, or class 0."""
    model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(1, 2))
    model[2].weight.data, model[2].bias.data = torch.tensor([[0.0], [1.0]]), torch.tensor([0.5, 0.0])
    truth = torch.tensor([0, 1])
    colour = [(torch.tensor([0.0, 2.0]).view(2, 1, 1, 1), truth)]
    grey = [(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1), truth)]
    by_mean = lesions(model, "0", [0], colour, grey, replacement="mean", draws=0)[0]
    assert by_mean.class_drop.tolist() == [1, 0]
    assert (by_mean.colour_drop, by_mean.grey_drop, by_mean.p) == (0.5, 0.5, None)
    by_zero = lesions(model, "0", [0], colour, grey, draws=0)[0]
    assert by_zero.class_drop.tolist() == [0, 1]


def test_a_class_without_images_has_no_fall():
    model = colour_network()
    model[3].weight.data = torch.cat([model[3].weight.data, torch.full((1, 2), -9.0)])
    results = lesions(model, "0", [0, 1], batches(COLOUR), batches(GREY), draws=0)
    assert np.isnan(results[0].class_drop[2])


@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "in place"])
def test_silenced_channels_are_constant_and_the_rest_untouched(inplace):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=inplace))
    x = torch.randn(2, 3, 6, 6)
    intact = model(x)
    with silenced(model, "1", [0, 3]):
        assert (model(x)[:, [0, 3]] == 0).all()
        assert torch.equal(model(x)[:, 1:3], intact[:, 1:3])
    with silenced(model, "1", [2, 0], torch.tensor([5.0, 7.0])):
        assert (model(x)[:, 2] == 5).all()
        assert (model(x)[:, 0] == 7).all()
    assert torch.equal(model(x), intact)


def test_the_model_is_restored_when_it_fails():
    model = nn.Sequential(nn.Conv2d(3, 4, 1)).train()
    with pytest.raises(ValueError, match=r"channels \[4\] of '0': it has 0 to 3"), silenced(model, "0", [4]):
        model(torch.zeros(1, 3, 2, 2))
    with pytest.raises(RuntimeError):
        class_accuracy(model, [(torch.zeros(1, 5, 2, 2), torch.zeros(1))])
    assert model.training
    assert not model[0]._forward_hooks


def test_what_cannot_be_silenced_is_refused():
    model, colour, grey = colour_network(), batches(COLOUR), batches(GREY)
    with pytest.raises(ValueError, match=r"conv9.*there are: 0, 1, 2, 3"):
        lesions(model, "conv9", [0, 1], colour, grey)
    with pytest.raises(ValueError, match="conv9"), silenced(model, "conv9", [0]):
        pass
    with pytest.raises(ValueError, match="3 values cannot replace 2"), silenced(model, "0", [0, 1], torch.zeros(3)):
        pass
    with pytest.raises(ValueError, match="grey batches that can be iterated only once"):
        lesions(model, "0", [0, 1], colour, iter(grey))
    with pytest.raises(ValueError, match="the 2 channels"):
        lesions(model, "0", [0, 1, 1], colour, grey)
    with pytest.raises(ValueError, match="'noise': must be zero or mean"):
        lesions(model, "0", [0, 1], colour, grey, replacement="noise")
    with pytest.raises(ValueError, match="same images"):
        lesions(model, "0", [0, 1], colour, [(GREY, torch.ones(4, dtype=torch.long))])
    with pytest.raises(ValueError, match="classes 2 to 2: the model knows 0 to 1"):
        class_accuracy(model, [(COLOUR, torch.full((4,), 2))])
    with pytest.raises(ValueError, match="needs an image"):
        class_accuracy(model, [])


class Additive:
    """Stands in for a network on images: silencing filters costs the sum of what each is worth."""

    def __init__(self, worth, _layer, _batches):
        self.worth, self.mean, self.images = worth, torch.zeros(len(worth)), np.array([1])

    def lost(self, channels, _replacement):
        return np.array([self.worth[channels].sum()])


def test_of_groups_that_are_no_different_p_is_uniform(monkeypatch):
    rng, p = np.random.default_rng(7), []
    worths = iter(())
    monkeypatch.setattr("analysis.lesion._ImageSet", lambda _model, *rest: Additive(next(worths), *rest))
    for draw in range(500):
        worths = iter(rng.normal(size=(2, 40)))  # on colour images, and on grey ones
        labels = rng.permutation(np.repeat([0, -1], [12, 28]))
        (lesion,) = lesions(nn.Identity(), "", labels, [], [], draws=99, seed=draw)
        p.append(lesion.p)
    assert kstest(p, "uniform").pvalue > 0.01
