"""ResNeXt against torchvision, the paper's tables and plain torch."""

import pytest
import torch
from plain_torch import assert_same_function, cb, cbr
from torch import nn

from experiments.models import build_model
from experiments.vision import import_torchvision
from gconv.cost import count_cost
from refusals import assert_refused


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnext50_32x4d", {}),
        pytest.param("resnext101_32x8d", {"width": 8, "blocks": [3, 4, 23, 3]}, marks=pytest.mark.slow),
        ("resnet50", {"cardinality": 1}),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_counts_are_those_of_torchvision(name, arguments):
    with torch.device("meta"):
        ours = count_cost(build_model("resnext", **arguments), (3, 224, 224))
        theirs = count_cost(import_torchvision().models.get_model(name), (3, 224, 224))
    assert (ours.parameters, ours.macs, ours.activations) == (theirs.parameters, theirs.macs, theirs.activations)


def test_resnext_equals_torchvision():
    torch.manual_seed(0)
    theirs = import_torchvision().models.ResNet(
        import_torchvision().models.resnet.Bottleneck, [2, 1, 1, 1], num_classes=5, groups=8, width_per_group=4
    )
    model = build_model("resnext", classes=5, cardinality=8, width=4, blocks=[2, 1, 1, 1])
    assert_same_function(model, theirs, torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize(("cardinality", "width"), [(1, 64), (2, 40), (4, 24), (8, 14), (32, 4)])
def test_equal_cost_gives_the_widths_of_table_2(cardinality, width):
    with torch.device("meta"):
        assert build_model("resnext", cardinality=cardinality).stage1[0].grouped[0].in_channels == cardinality * width


@pytest.mark.parametrize(("cardinality", "millions"), [(8, 34.4), (16, 68.1)])
def test_parameters_of_the_cifar_networks_of_table_7(cardinality, millions):
    with torch.device("meta"):
        model = build_model("resnext", classes=10, cardinality=cardinality, width=64, blocks=[3, 3, 3], stem="cifar")
    assert count_cost(model, (3, 32, 32)).parameters / 1e6 == pytest.approx(millions, abs=0.06)


class Block(nn.Module):
    def __init__(self, i, d, o, stride, groups, shortcut):
        super().__init__()
        self.body = nn.Sequential(cbr(i, d, 1), cbr(d, d, 3, stride, groups), cb(d, o, 1))
        self.shortcut = shortcut
        self.project = cb(i, o, 1, stride) if shortcut and (i != o or stride > 1) else nn.Identity()

    def forward(self, x):
        return torch.relu(self.body(x) + self.project(x)) if self.shortcut else torch.relu(self.body(x))


@pytest.mark.parametrize("shortcut", [True, False], ids=["shortcut", "plain"])
@pytest.mark.parametrize(
    ("cardinality", "width", "d", "parts"), [(4, 3, 12, 4), ("log:3", 4, 12, (2, 1, 1)), ("~2", 5, 10, 2)], ids=str
)
def test_resnext_for_small_images_equals_plain_torch(cardinality, width, d, parts, shortcut):
    torch.manual_seed(0)
    model = build_model(
        "resnext",
        classes=5,
        cardinality=cardinality,
        width=width,
        blocks=[2, 1],
        stem="cifar",
        channels=16,
        shortcut=shortcut,
    )
    plain = nn.Sequential(
        *(cbr(3, 4, 3), Block(4, d, 16, 1, parts, shortcut), Block(16, d, 16, 1, parts, shortcut)),
        *(Block(16, 2 * d, 32, 2, parts, shortcut), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)),
    )
    assert_same_function(model, plain, torch.randn(3, 3, 9, 12))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"cardinality": 8, "channels": 64}, ["cardinality=8", "4,352 weights", "24 channels", "3,720", "~8"]),
        ({"cardinality": 300, "channels": 64}, ["300 equal groups"]),
        ({"cardinality": "log:4", "width": 3}, ["log:4", "12 channels"]),
        ({"channels": 30}, ["channels=30", "multiple of 4"]),
        ({"blocks": []}, ["blocks=[]"]),
        ({"blocks": [3, 0]}, ["blocks=[3, 0]"]),
        ({"width": 0}, ["width=0"]),
        ({"cardinality": "many"}, ["many", "cannot be read"]),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_one_clear_line(arguments, words):
    assert_refused("resnext", arguments, words)
