"""ShuffleNet v1 against the paper's table 1 and plain torch."""

import pytest
import torch
from plain_torch import assert_same_function, cb, cbr
from torch import nn

from experiments.models import build_model
from gconv import ChannelPermutation
from gconv.cost import count_cost
from refusals import assert_refused


@pytest.mark.parametrize(("groups", "millions"), [(1, 143), (2, 140), (3, 137), (4, 133), (8, 137)])
def test_complexity_of_table_1(groups, millions):
    with torch.device("meta"):
        cost = count_cost(build_model("shufflenet", groups=groups), (3, 224, 224))
    convolutions = cost.macs - cost.layers[-1].macs  # the paper's complexity is that of the convolutions
    assert round(convolutions / 1e6) == millions
    assert cost.macs / 1e6 == pytest.approx(millions, abs=1.6)


class Unit(nn.Module):
    """Figure 2 of the paper, written out."""

    def __init__(self, i, o, stride, first, groups, middle, shuffle):
        super().__init__()
        self.reduce = cbr(i, middle, 1, groups=first)
        self.shuffle, self.stride = shuffle, stride
        self.depthwise = cb(middle, middle, 3, stride, middle)
        self.expand = cb(middle, o - i if stride == 2 else o, 1, groups=groups)

    def forward(self, x):
        y = self.expand(self.depthwise(self.shuffle(self.reduce(x))))
        if self.stride == 1:
            return torch.relu(x + y)
        return torch.relu(torch.cat([nn.functional.avg_pool2d(x, 3, 2, 1), y], 1))


def plain(stem, stem_channels, width, groups, middle, shuffle):
    layers = [cbr(3, stem_channels, 3, 2), nn.MaxPool2d(3, 2, 1)] if stem == "imagenet" else [cbr(3, stem_channels, 3)]
    channels, first = stem_channels, 1
    for stage, count in enumerate((4, 8, 4)):
        for unit in range(count):
            out = width * 2**stage
            layers.append(Unit(channels, out, 1 if unit else 2, first, groups, middle[stage], shuffle))
            channels, first = out, groups
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


@pytest.mark.parametrize("stem", [pytest.param("imagenet", marks=pytest.mark.slow), "cifar"])
@pytest.mark.parametrize("shuffled", [True, False], ids=["shuffle", "none"])
@pytest.mark.parametrize(
    ("groups", "scale", "stem_channels", "width", "middle"),
    [
        (1, 0.5, 12, 72, (18, 36, 72)),
        (3, 0.5, 12, 120, (30, 60, 120)),
        (4, 0.5, 12, 136, (36, 68, 136)),  # a quarter of 136 is 34, which four groups cannot cut
        (8, 0.25, 8, 96, (24, 48, 96)),
    ],
)
def test_shufflenet_equals_plain_torch(groups, scale, stem_channels, width, middle, shuffled, stem):
    torch.manual_seed(0)
    shuffle = "shuffle" if shuffled else "none"
    model = build_model("shufflenet", classes=5, groups=groups, scale=scale, shuffle=shuffle, stem=stem)
    other = plain(stem, stem_channels, width, groups, middle, nn.ChannelShuffle(groups) if shuffled else nn.Identity())
    # Untrained, deep and in evaluation, responses grow with depth: compare where they are of order one.
    model.classify.weight.data /= 100
    assert_same_function(model, other, torch.randn(4, 3, 32, 32))


def test_a_random_permutation_is_fixed_and_drawn_from_the_seed():
    def orders(seed):
        torch.manual_seed(seed)
        model = build_model("shufflenet", classes=5, scale=0.25, shuffle="random")
        return [m.order.tolist() for m in model.modules() if isinstance(m, ChannelPermutation)]

    assert len(orders(0)) == 16
    assert orders(0) == orders(0)
    assert orders(0) != orders(1)
    assert all(sorted(order) == list(range(len(order))) for order in orders(0))


def test_logarithmic_groups_with_a_width():
    model = build_model("shufflenet", classes=5, groups="log:3", width=64, stem="cifar")
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 5)
    assert str(model.stage3[0].expand[0].geometry.in_groups) == "log:3"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"groups": 6}, ["groups=6", "1, 2, 3, 4, 8", "width"]),
        ({"groups": "log:4"}, ["log:4", "width"]),
        ({"groups": 5, "width": 101}, ["5 equal groups"]),
        ({"groups": 2, "width": 20}, ["20 channels", "24"]),
        ({"scale": 0}, ["scale=0"]),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_one_clear_line(arguments, words):
    assert_refused("shufflenet", arguments, words)
