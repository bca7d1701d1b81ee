"""The interaction of group and colour among lesions."""

from contextlib import nullcontext
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from analysis.lesion import Lesion
from experiments.data.augment import Views
from experiments.measure.context import prepare
from experiments.measure.first_layer import FirstFilters
from experiments.measure.lesions import _feeding_module, _interaction, measure_lesions
from experiments.measure.options import MeasureOptions
from experiments.measure.table import gather
from experiments.models import build_model
from experiments.training.recipe import Recipe
from experiments.training.run_context import RunContext
from tiny_images import tiny_dataset


def lesion(group, on_colour, on_grey):
    return Lesion(group, 4, on_colour, on_grey, np.zeros(2), np.zeros(0), np.zeros(0))


def lesioned(model, images, colour_index, shown_as="colour"):
    """Values by (measure, null) of a network whose first filters have this colour index, all of them learned."""
    views = Views(image_size=12, crop_size=12, colour=shown_as)
    run_context = RunContext.of(tiny_dataset(12), views, Recipe(device="cpu"))
    options = MeasureOptions(permutations=199, draws=2, lesion_images=images)
    context = prepare(model, deepcopy(model), run_context, options)
    index, weight = np.array(colour_index), model.conv1.weight.detach().numpy()
    first = FirstFilters("conv1", weight, weight, weight, None, np.ones(len(index), dtype=bool), index)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.measure.lesions.first_filters", lambda _context: first)
        table = gather(measure_lesions(context), "study", "variant", 0).table
    return table.set_index(["measure", "null"])["value"]


def test_the_interaction_is_that_of_the_colour_group_less_that_of_the_grey_group():
    """Group 1 has the largest colour index, group 0 the smallest: (.30 − .10) − (.12 − .15) = .23."""
    lesions = [lesion(0, 0.12, 0.15), lesion(1, 0.30, 0.10), lesion(2, 0.5, 0.0)]
    assert _interaction(lesions, {0: 0.1, 1: 0.6, 2: 0.3}) == pytest.approx(0.23)


@pytest.mark.parametrize("kept", [(0.9, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.1), (0.9, 0.1, 0.9, 0.1, 0.9, 0.1, 0.9, 0.2)])
def test_groups_that_do_not_split_by_colour_have_no_interaction(kept):
    """The same network, its first filters called colour or grey by group, or in turn: only the first is a split."""
    torch.manual_seed(0)
    model = build_model("small", classes=2, groups=2, width=8).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.measure.lesions._interaction", lambda falls, means: 0.5)
        table = lesioned(model, 8, kept)
    assert table["lesion_interaction", ""] == (0.5 if kept[1] == 0.9 else 0.0)
    assert table["lesion_interaction", "arbitrary partition"] == 0.0


class ColourReader(nn.Module):
    """Two groups: the first reads brightness and is not listened to, the second reads red − blue and decides alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 1, bias=False)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(4, 2, 1, groups=2, bias=False)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.classify = nn.Linear(2, 2)
        red_blue = torch.tensor([[1.0, 0.0, -1.0], [-1.0, 0.0, 1.0]])
        with torch.no_grad():
            self.conv1.weight.copy_(torch.cat([torch.ones(2, 3), red_blue])[:, :, None, None])
            self.conv2.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]])[:, :, None, None])
            self.classify.weight.copy_(torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
            self.classify.bias.copy_(torch.tensor([0.1, 0.0]))  # red, where nothing is known

    def forward(self, x):
        return self.classify(self.average(self.conv2(self.relu1(self.conv1(x)))).flatten(1))


@pytest.mark.parametrize("shown_as", ["colour", "grey"])
def test_a_network_trained_on_grey_images_is_lesioned_on_colour_ones_too(shown_as):
    """All 12 images are classified correctly by colour, and half of them without it; grey ones are all called red."""
    hardly_any_split = (0.01, 0.02, 0.03, 0.02)
    table = lesioned(ColourReader().eval(), 12, hardly_any_split, shown_as)
    assert table["lesion_colour_group_on_colour", ""] == 0.5
    assert table["lesion_colour_group_on_grey", ""] == 0.0
    assert table["lesion_grey_group_on_colour", ""] == table["lesion_grey_group_on_grey", ""] == 0.0
    assert table["lesion_interaction_any_split", ""] == 0.5
    assert table["lesion_interaction", ""] == 0.0
    assert abs(table["lesion_interaction_any_split", "arbitrary partition"]) <= 0.5


@pytest.mark.parametrize("channels", [3, 5])
def test_the_search_for_a_module_leaves_each_module_in_its_mode(channels):
    """Images of 5 channels are refused by the network."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4).eval(), nn.Conv2d(4, 2, 1))
    with pytest.raises(RuntimeError) if channels == 5 else nullcontext():
        assert _feeding_module(model, "2", torch.ones(2, channels, 4, 4)) == "1"
    assert [module.training for module in (model, *model)] == [True, True, False, True]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model)
