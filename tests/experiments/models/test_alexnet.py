"""AlexNet against published counts and against plain torch with copied weights."""

import pytest
import torch
import torch.nn.functional as F

from experiments.errors import UsageError
from experiments.models import build_model
from gconv.cost import count_cost
from refusals import assert_refused


@pytest.mark.parametrize(
    ("groups", "parameters", "macs_and_biases"), [(1, 62_378_344, 1_135_266_664), (2, 60_965_224, 724_417_384)]
)
def test_alexnet_has_the_published_counts(groups, parameters, macs_and_biases):
    with torch.device("meta"):
        model = build_model("alexnet", groups=groups)
    cost = count_cost(model, (3, 227, 227))
    assert cost.parameters == parameters
    biases = sum(p.numel() for name, p in model.named_parameters() if name.endswith("bias"))
    assert cost.macs + biases == macs_and_biases


def plain_alexnet(state, x, groups, norm):
    """AlexNet written out with functions."""

    def conv(x, n, stride=1, padding=0, groups=1):
        x = F.conv2d(x, state[f"conv{n}.weight"], state.get(f"conv{n}.bias"), stride, padding, groups=groups)
        if norm == "batch":
            names = ("running_mean", "running_var", "weight", "bias")
            x = F.batch_norm(x, *(state[f"norm{n}.{name}"] for name in names))
        return x.relu()

    def pool(x):
        return F.max_pool2d(F.local_response_norm(x, 5, 1e-4, 0.75) if norm == "local" else x, 3, 2)

    x = pool(conv(x, 1, stride=4))
    x = pool(conv(x, 2, padding=2, groups=groups))
    x = conv(conv(x, 3, padding=1), 4, padding=1, groups=groups)
    x = F.max_pool2d(conv(x, 5, padding=1, groups=groups), 3, 2)
    if "fc6.weight" in state:
        x = F.linear(x.flatten(1), state["fc6.weight"], state["fc6.bias"]).relu()
        x = F.linear(x, state["fc7.weight"], state["fc7.bias"]).relu()
    else:
        x = x.mean((2, 3))
    return F.linear(x, state["classify.weight"], state["classify.bias"])


@pytest.mark.parametrize(
    ("groups", "norm", "head"),
    [(1, "batch", "average"), (2, "batch", "average"), (4, "none", "average"), (2, "local", "dense")],
)
def test_alexnet_equals_plain_torch(groups, norm, head):
    torch.manual_seed(0)
    model = build_model("alexnet", classes=7, groups=groups, norm=norm, head=head, input_size=80).eval()
    x = torch.randn(2, 3, 80, 80)
    with torch.no_grad():
        torch.testing.assert_close(model(x), plain_alexnet(model.state_dict(), x, groups, norm), rtol=1e-5, atol=1e-5)


def test_67_pixels_are_enough_for_alexnet_and_66_are_not():
    assert build_model("alexnet", input_size=67, head="average")(torch.randn(2, 3, 67, 67)).shape == (2, 1000)
    with pytest.raises(UsageError, match="67"):
        build_model("alexnet", input_size=66)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"groups": 5}, ["alexnet", "5 equal groups", "96"]),
        ({"groups": "log:9"}, ["log:9"]),
        ({"input_size": 40}, ["input_size=40", "67"]),
    ],
    ids=str,
)
def test_what_cannot_be_built_is_one_clear_line(arguments, words):
    assert_refused("alexnet", arguments, words)


def test_a_narrower_dense_network_has_the_parameters_of_two_groups():
    """Counted by hand with 72, 200, 304, 304 and 200 filters: weights, batch norms, classifier."""
    with torch.device("meta"):
        model = build_model("alexnet", classes=10, groups=1, norm="batch", head="average", input_size=80, width=0.79)
    weights = 3 * 72 * 121 + 72 * 200 * 25 + 200 * 304 * 9 + 304 * 304 * 9 + 304 * 200 * 9
    by_hand = weights + 2 * (72 + 200 + 304 + 304 + 200) + 200 * 10 + 10
    two_groups = 2_338_026
    assert count_cost(model, (3, 80, 80)).parameters == by_hand == pytest.approx(two_groups, rel=0.01)


def test_a_width_that_is_no_width_is_refused():
    assert_refused("alexnet", {"width": 0.0}, ["width=0.0", "above 0"])
