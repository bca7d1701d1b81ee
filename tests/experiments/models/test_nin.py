"""Network in Network against published counts and plain torch."""

import pytest
import torch
from plain_torch import assert_same_function, conv
from torch import nn

from experiments.models import build_model
from gconv.cost import count_cost
from refusals import assert_refused


@pytest.mark.parametrize(
    ("variant", "parameters", "macs_and_biases"),
    [
        ("orig", 966_986, 222_487_946),
        ("root-4", 455_498, 123_397_514),
        # The rest by hand: 460,800 and 331,776 weights of conv2a and conv3a divided by their groups.
        ("root-2", 966_986 - 230_400, 222_487_946 - 230_400 * 256),
        ("root-8", 966_986 - 403_200 - 248_832, 222_487_946 - 403_200 * 256 - 248_832 * 64),
        ("tree-2", 966_986 - 230_400 - 248_832, 222_487_946 - 230_400 * 256 - 248_832 * 64),
        ("column-2", 966_986 - 230_400 - 165_888, 222_487_946 - 230_400 * 256 - 165_888 * 64),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_nin_has_the_published_counts(variant, parameters, macs_and_biases):
    with torch.device("meta"):
        model = build_model("nin", variant=variant)
    cost = count_cost(model, (3, 32, 32))
    assert cost.parameters == parameters
    assert cost.macs + sum(p.numel() for n, p in model.named_parameters() if n.endswith("bias")) == macs_and_biases


@pytest.mark.parametrize(
    ("variant", "groups"),
    [
        ("orig", (1, 1)),
        ("root-1", (1, 1)),
        ("root-4", (4, 2)),
        ("root-16", (16, 8)),
        ("tree-4", (4, 8)),
        ("column-8", (8, 8)),
        ("root-log:4", ((4, 2, 1, 1), (2, 1, 1))),
        ("tree-log:3", ((2, 1, 1), (4, 2, 1, 1))),
        ("column-2:1:1", ((2, 1, 1), (2, 1, 1))),
    ],
    ids=str,
)
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_nin_equals_plain_torch(variant, groups, norm):
    def block(i, o, k, g=1):
        bias = norm == "none"
        parts = [conv(i, o, k, g, padding=k // 2, bias=bias)]
        return [*parts, nn.ReLU()] if bias else [*parts, nn.BatchNorm2d(o), nn.ReLU()]

    plain = nn.Sequential(
        *(*block(3, 96, 5), *block(96, 80, 1), *block(80, 48, 1), nn.MaxPool2d(3, 2, ceil_mode=True)),
        *(*block(48, 96, 5, groups[0]), *block(96, 96, 1), *block(96, 96, 1), nn.AvgPool2d(3, 2, ceil_mode=True)),
        *(*block(96, 96, 3, groups[1]), *block(96, 96, 1), nn.Conv2d(96, 5, 1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    torch.manual_seed(0)
    model = build_model("nin", classes=5, variant=variant, norm=norm, width=96)
    assert_same_function(model, plain, torch.randn(3, 3, 17, 20))


def test_folding_the_norms_gives_the_published_network():
    torch.manual_seed(0)
    trained = build_model("nin", variant="root-4", norm="batch", width=24)
    deployed = build_model("nin", variant="root-4", norm="none", width=24)
    for _ in range(3):
        trained(torch.randn(8, 3, 12, 12))
    trained.eval()
    for name, layer in deployed.named_children():
        if name.startswith("conv"):
            own, norm = getattr(trained, name), getattr(trained, name.replace("conv", "norm"), None)
            layer.load_state_dict(own.state_dict(), strict=norm is None)
            if norm is not None:
                scale = norm.weight / (norm.running_var + norm.eps).sqrt()
                layer.weight.data *= scale.view(-1, 1, 1, 1)
                layer.bias.data = norm.bias.data - norm.running_mean * scale.data
    x = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(trained(x), deployed.eval()(x), rtol=1e-4, atol=1e-4)


def test_groups_may_be_given_one_by_one():
    model = build_model("nin", groups=[4, "log:3"], width=48)
    assert (model.conv2a.groups, str(model.conv3a.geometry.out_groups)) == (4, "log:3")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"variant": "roots-4"}, ["roots-4", "root-G"]),
        ({"variant": "root"}, ["variant=root"]),
        ({"variant": "root-x"}, ["root-x"]),
        ({"variant": "column-"}, ["column-"]),
        ({"variant": "root-7"}, ["7 equal groups", "96"]),
        ({"groups": [4]}, ["groups=[4]", "two"]),
        ({"groups": [4, 2], "variant": "root-4"}, ["variant=orig"]),
    ],
    ids=str,
)
def test_what_is_no_variant_is_one_clear_line(arguments, words):
    assert_refused("nin", arguments, words)
