"""Replicated modules: linear cost with groups, quadratic without, equal to modules run one by one."""

import pytest
import torch
from plain_torch import assert_same_function, cbr
from torch import nn

from experiments.errors import UsageError
from experiments.models import build_model
from gconv.cost import count_cost


def plain(classes, replicas, groups, w):
    return nn.Sequential(
        *(cbr(3, w * replicas, 5, 2), nn.MaxPool2d(2), cbr(w * replicas, 2 * w * replicas, 3, groups=groups)),
        *(nn.MaxPool2d(2), cbr(2 * w * replicas, 2 * w * replicas, 3, groups=groups)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * w * replicas, classes)),
    )


@pytest.mark.parametrize(
    ("groups", "parts"), [(None, 4), (1, 1), (2, 2), ("log:3", (2, 1, 1)), ("3:1", (3, 1))], ids=str
)
def test_widen_equals_plain_torch(groups, parts):
    torch.manual_seed(0)
    model = build_model("widen", classes=5, replicas=4, groups=groups)
    assert_same_function(model, plain(5, 4, parts, 8), torch.randn(3, 3, 21, 30))


def test_replicas_are_the_module_side_by_side():
    torch.manual_seed(0)
    model = build_model("widen", classes=5, replicas=3).eval()
    x, total = torch.randn(2, 3, 16, 16), model.classify.bias.clone()
    for r in range(3):
        single = build_model("widen", classes=5, replicas=1).eval()
        for own, one in zip(model.modules(), single.modules(), strict=True):
            if list(own.children()) or not hasattr(own, "weight"):
                continue
            if isinstance(own, nn.Linear):
                one.weight.data = own.weight.data[:, 16 * r : 16 * (r + 1)]
                one.bias.data.zero_()
            else:
                size = len(one.weight)
                one.load_state_dict(
                    {k: v[size * r : size * (r + 1)] if v.dim() else v for k, v in own.state_dict().items()}
                )
        total = total + single(x)
    torch.testing.assert_close(model(x), total, rtol=1e-5, atol=1e-5)


def test_cost_grows_as_replicas_with_groups_and_as_their_square_without():
    def macs(replicas, **arguments):
        layers = count_cost(build_model("widen", replicas=replicas, **arguments), (3, 32, 32)).layers
        return sum(layer.macs for layer in layers if layer.name in ("conv2", "conv3"))

    for replicas in (1, 2, 4, 8, 16):
        assert macs(replicas) == replicas * macs(1)
        assert macs(replicas, groups=1) == replicas**2 * macs(1)


def test_no_replica_is_one_clear_line():
    with pytest.raises(UsageError, match="replicas=0"):
        build_model("widen", replicas=0)
