"""Filters that learned nothing, and calibrated batch norms."""

import numpy as np
import pytest
import torch
from torch import nn

from analysis.null_filters import calibrate, group_weights, random_filters, rotated_filters
from gconv import Block, GroupedConv2d


@pytest.mark.parametrize(
    "layer",
    [GroupedConv2d(16, 16, 3, groups="log:3"), GroupedConv2d(8, 12, (3, 5), groups=4), nn.Conv2d(6, 4, 3, groups=2)],
    ids=["log", "equal", "torch"],
)
def test_rotated_filters_keep_energy_spectrum_and_redundancy_and_read_other_channels(layer):
    """Σ_i W[o, i, k] W[p, i, l], for all filters o, p and taps k, l, is what an orthogonal matrix over i keeps."""
    before = [weight.detach().clone() for weight in group_weights(layer)]
    rotated = rotated_filters(layer, seed=3)
    for weight, same, after in zip(before, group_weights(layer), group_weights(rotated), strict=True):
        assert torch.equal(weight, same), "the layer itself is left alone"
        taps = [w.detach().double().flatten(2) for w in (weight, after)]
        gram = [torch.einsum("oik,pil->opkl", w, w) for w in taps]
        torch.testing.assert_close(*gram, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(weight, after, atol=0.01)
    first, again = (torch.cat([w.flatten() for w in group_weights(rotated_filters(layer, 3))]) for _ in range(2))
    assert torch.equal(first, again)


def test_rotations_favour_no_direction():
    """The mean of a uniform orthogonal matrix is 0, that of its squares 1 / n."""
    layer = nn.Conv2d(3, 3, 1, bias=False)
    nn.init.eye_(layer.weight.data.view(3, 3))
    drawn = np.stack([rotated_filters(layer, seed).weight.detach().view(3, 3).numpy() for seed in range(2000)])
    np.testing.assert_allclose(drawn.mean(0), 0, atol=0.06)
    np.testing.assert_allclose((drawn**2).mean(0), 1 / 3, atol=0.04)


def test_random_filters_are_those_of_the_initialisation_and_no_generator_moves():
    layer, state = GroupedConv2d(4, 6, 1, groups=2), torch.random.get_rng_state()
    drawn = random_filters(layer, 5)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(5)
    assert torch.equal(drawn.weight, GroupedConv2d(4, 6, 1, groups=2).weight)


def test_what_cannot_be_drawn_or_rotated_says_so():
    with pytest.raises(ValueError, match="ReLU has no weights"):
        random_filters(nn.ReLU(), 0)
    with pytest.raises(ValueError, match="no two-dimensional convolution"):
        rotated_filters(nn.Linear(3, 3), 0)
    with pytest.raises(ValueError, match="nothing to rotate"):
        rotated_filters(nn.Conv2d(4, 4, 3, groups=4), 0)


@pytest.mark.parametrize("container", [nn.Sequential, Block], ids=["modules", "block"])
def test_calibration_gathers_the_statistics_of_the_images_and_moves_nothing_else(container):
    torch.manual_seed(0)
    model = container(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    weights = {name: value.clone() for name, value in model.state_dict().items() if "running" not in name}
    model.train()
    model[0].eval()
    x = torch.randn(40, 3, 5, 5) * 3 + 2
    calibrate(model, x.split(20))
    responses = nn.functional.conv2d(x, model[0].weight, model[0].bias)
    torch.testing.assert_close(model[1].running_mean, responses.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    halves = torch.stack([part.var((0, 2, 3)) for part in responses.split(20)]).mean(0)
    torch.testing.assert_close(model[1].running_var, halves, rtol=1e-4, atol=1e-4)
    assert model[1].momentum == 0.1 and model.training and not model[0].training
    for name, value in model.state_dict().items():
        if "running" not in name and "tracked" not in name:
            assert torch.equal(value, weights[name]), name


def test_a_calibration_that_fails_leaves_modes_and_momenta():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4).eval(), nn.BatchNorm2d(4))
    with pytest.raises(RuntimeError):
        calibrate(model, [torch.ones(2, 5, 4, 4)])
    assert [module.training for module in (model, *model)] == [True, True, False, True]
    assert [model[1].momentum, model[2].momentum] == [0.1, 0.1]
