"""MobileNet v1 against the paper's tables and plain torch."""

import pytest
import torch
from plain_torch import assert_same_function, cbr
from torch import nn

from experiments.models import build_model
from gconv.cost import count_cost
from refusals import assert_refused


@pytest.mark.parametrize(
    ("arguments", "millions_of_macs", "millions_of_parameters"),
    [
        ({}, 569, 4.2),
        ({"multiplier": 0.75}, 325, 2.6),
        ({"multiplier": 0.5}, 149, 1.3),
        ({"multiplier": 0.25}, 41, 0.5),
        ({"spatial": "full"}, 4866, 29.3),
    ],
    ids=str,
)
def test_counts_of_tables_4_and_6(arguments, millions_of_macs, millions_of_parameters):
    with torch.device("meta"):
        cost = count_cost(build_model("mobilenet", **arguments), (3, 224, 224))
    assert cost.macs / 1e6 == pytest.approx(millions_of_macs, rel=4e-4, abs=0.6)
    assert cost.parameters / 1e6 == pytest.approx(millions_of_parameters, abs=0.05)


def test_1x1_convolutions_take_nearly_all_multiplications():
    with torch.device("meta"):
        cost = count_cost(build_model("mobilenet"), (3, 224, 224))
    pointwise = sum(layer.macs for layer in cost.layers if layer.name.startswith("pointwise"))
    assert pointwise / cost.macs == pytest.approx(0.9486, abs=5e-4), "table 2 of the paper"


def test_a_pair_costs_one_over_n_plus_one_over_k_squared_of_a_full_convolution():
    with torch.device("meta"):
        models = (build_model("mobilenet"), build_model("mobilenet", spatial="full"))
        macs = {layer.name: layer.macs for model in models for layer in count_cost(model, (3, 224, 224)).layers}
    for number, outputs in ((1, 64), (6, 512), (13, 1024)):
        pair = macs[f"spatial{number}.0"] + macs[f"pointwise{number}.0"]
        assert pair / macs[f"full{number}.0"] == pytest.approx(1 / outputs + 1 / 9)


WIDTHS = [8, 16, 32, 32, 64, 64, 128, 128, 128, 128, 128, 128, 256, 256]
STRIDES = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]


@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
@pytest.mark.parametrize(
    ("spatial", "pointwise", "parts"),
    [
        ("depthwise", 1, None),
        ("full", 1, None),
        (4, 2, (4, 2)),
        ("log:3", "log:2", ((2, 1, 1), 2)),
    ],
    ids=str,
)
def test_mobilenet_equals_plain_torch(spatial, pointwise, parts, stem):
    layers = [cbr(3, 8, 3, 2 if stem == "imagenet" else 1)]
    for i, o, stride in zip(WIDTHS, WIDTHS[1:], STRIDES, strict=False):
        if spatial == "full":
            layers += [cbr(i, o, 3, stride)]
        else:
            cut, cut_1x1 = parts or (i, 1)
            layers += [cbr(i, i, 3, stride, cut), cbr(i, o, 1, groups=cut_1x1)]
    plain = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 5))
    torch.manual_seed(0)
    model = build_model("mobilenet", classes=5, spatial=spatial, pointwise=pointwise, multiplier=0.25, stem=stem)
    assert_same_function(model, plain, torch.randn(4, 3, 64, 64))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"spatial": "depth"}, ["spatial=depth", "depthwise, full"]),
        ({"spatial": 7}, ["7 equal groups", "32"]),
        ({"spatial": "full", "pointwise": 2}, ["pointwise=2", "spatial=full"]),
        ({"multiplier": 0}, ["multiplier=0"]),
        ({"multiplier": float("nan")}, ["multiplier=nan"]),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_one_clear_line(arguments, words):
    assert_refused("mobilenet", arguments, words)
