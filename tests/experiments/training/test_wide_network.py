import pytest
import torch
from torch import nn

from experiments.models import build_model
from experiments.training.wide_network import WideNetwork, refusal
from gconv import GroupedConv2d

NETS = {
    "log groups, batch norm, shortcuts": ("lognet", {"groups": "log:4", "width": 16}),
    "uneven groups, no shortcuts": ("lognet", {"groups": "~3", "width": 16, "shortcut": False}),
    "small": ("small", {"groups": "log:3", "width": 8}),
    "channel shuffle": ("shufflenet", {"groups": 2, "width": 32, "stem": "cifar"}),
    "channel shuffle of uneven groups": ("shufflenet", {"groups": "~3", "width": 32, "stem": "cifar"}),
    "a permutation of each network's own": (
        "shufflenet",
        {"groups": 2, "width": 32, "stem": "cifar", "shuffle": "random"},
    ),
    "depthwise": ("mobilenet", {"multiplier": 0.0625, "stem": "cifar"}),
    "biases, no norm, plain convolution": ("nin", {"variant": "root-2", "width": 12}),
    "projections": ("resnext", {"cardinality": 2, "blocks": [1, 1], "channels": 32, "stem": "cifar"}),
    "replicas": ("widen", {}),
    "local response norm, dense head": (None, {}),
}
COUNT, SIZE = 3, 8


pytestmark = pytest.mark.usefixtures("shallow")


def like_alexnet():
    """Its kinds of layers, without its millions of weights."""
    head = [nn.Flatten(), nn.Linear(6 * 3 * 3, 5), nn.ReLU(inplace=True), nn.Dropout(0.0), nn.Linear(5, 3, bias=False)]
    norm = nn.LocalResponseNorm(5, alpha=0.1)
    return nn.Sequential(GroupedConv2d(3, 6, 3, groups=3), nn.ReLU(inplace=True), norm, nn.MaxPool2d(2), *head)


def networks(case):
    name, arguments = NETS[case]
    built = []
    for seed in range(COUNT):
        torch.manual_seed(seed)
        model = build_model(name, SIZE, classes=3, **arguments) if name else like_alexnet()
        built.append(model.double().to(memory_format=torch.channels_last))
    return built


@pytest.mark.parametrize("case", NETS)
def test_every_network_learns_as_it_does_alone(case):
    """In double precision, where what differs by rounding alone differs by far less than what is computed otherwise."""
    alone, joined = networks(case), networks(case)
    wide = WideNetwork(joined)
    optimizers = [torch.optim.SGD(m.parameters(), 0.01, 0.9) for m in (wide, *alone)]
    torch.manual_seed(9)
    for _ in range(2):
        xs = [torch.randn(4, 3, SIZE, SIZE, dtype=torch.double) for _ in range(COUNT)]
        y, expected = wide(xs), torch.stack([m(x) for m, x in zip(alone, xs, strict=True)])
        assert torch.allclose(y, expected, rtol=1e-9, atol=1e-9)
        towards = torch.randn_like(y)
        for optimizer in optimizers:
            optimizer.zero_grad()
        (y * towards).sum().backward()
        (expected * towards).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    for ours, known in zip(joined, alone, strict=True):
        known_state = known.state_dict()
        assert ours.state_dict().keys() == known_state.keys()
        for name, value in ours.state_dict().items():  # weights and running statistics
            assert torch.allclose(value, known_state[name], rtol=1e-8, atol=1e-8), name


@pytest.mark.parametrize("case", [case for case, (name, _) in NETS.items() if name not in ("mobilenet", "shufflenet")])
def test_parameters_are_named_ordered_and_laid_out_as_those_of_one_network(case):
    (known, *_), joined = networks(case), networks(case)
    wide = WideNetwork(joined)
    assert [n for n, _ in wide.layers.named_parameters()] == [n for n, _ in known.named_parameters()]
    for (name, p), q in zip(joined[1].named_parameters(), known.parameters(), strict=True):
        assert p.shape == q.shape and p.clone().stride() == q.stride(), name
        whole = wide.layers.get_parameter(name)
        assert whole.dim() == p.dim(), "weights decay by their number of dimensions"
        assert p.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr(), "a view, not a copy"


def test_values_loaded_into_a_network_are_those_that_it_goes_on_from():
    joined = networks("a permutation of each network's own")
    wide = WideNetwork(joined)
    others = networks("a permutation of each network's own")
    joined[2].load_state_dict(others[0].state_dict())
    x = torch.randn(4, 3, SIZE, SIZE, dtype=torch.double)
    y = wide([x, x, x])
    assert torch.allclose(y[2], y[0])
    assert not torch.allclose(y[1], y[0])


def test_a_network_that_is_not_finite_leaves_the_others_alone():
    joined = networks("log groups, batch norm, shortcuts")
    x = torch.randn(4, 3, SIZE, SIZE, dtype=torch.double)
    expected = [joined[k](x) for k in (0, 2)]
    wide = WideNetwork(joined)
    with torch.no_grad():
        joined[1].get_parameter("classify.bias").fill_(float("nan"))
    y = wide([x, x, x])
    y.sum().backward()
    assert y[1].isnan().all()
    assert torch.allclose(y[0], expected[0]) and torch.allclose(y[2], expected[1])
    assert all(p.grad.chunk(COUNT)[k].isfinite().all() for p in wide.parameters() for k in (0, 2))


class Sliced(nn.Module):
    def forward(self, x):
        return x[:, :2]


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Joined(nn.Module):
    def forward(self, x):
        return torch.cat([x, x], 2)


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (nn.Dropout(0.2), "its layer 1 (Dropout) draws from random numbers that all networks share: p=0.2"),
        (nn.GroupNorm(1, 4), "its layer 1 (GroupNorm) has no rule"),
        (nn.Softmax(1), "its layer 1 (Softmax) has no rule"),
        (GroupedConv2d(4, 4, 3, padding="same"), "padding=same"),
        (nn.Flatten(2), "flattens other dimensions"),
        (Sliced(), "getitem"),
        (Branches(), "depends on its input"),
        (Joined(), "where channels alone can be joined"),
    ],
)
def test_what_would_mix_networks_is_refused_in_one_line(layer, words):
    model = nn.Sequential(GroupedConv2d(3, 4, 3), layer)
    reason = refusal(model)
    assert reason is not None and words in reason and "\n" not in reason
    with pytest.raises(ValueError, match=r"layer|computes|joins"):
        WideNetwork([model, model])


def test_dropout_that_drops_nothing_is_no_reason():
    assert refusal(nn.Sequential(GroupedConv2d(3, 4, 3), nn.Dropout(0.0), nn.Flatten())) is None


def test_dense_networks_side_by_side_have_the_choice_of_kernels():
    """Each dense convolution becomes a grouped one: a forced kernel computes all of them."""
    from unittest import mock

    from gconv import forced_kernel
    from gconv.kernels import packed
    from gconv.operator import dispatch

    def dense():
        return nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2, bias=False))

    alone = [dense() for _ in range(COUNT)]
    xs = [torch.randn(2, 3, SIZE, SIZE) for _ in range(COUNT)]
    expected = torch.stack([network(x) for network, x in zip(alone, xs, strict=True)])
    wide = WideNetwork(alone)
    dispatch._named.cache_clear()
    with mock.patch.object(packed, "conv2d", wraps=packed.conv2d) as computed, forced_kernel("packed"):
        outputs = wide(xs)
    dispatch._named.cache_clear()
    assert computed.call_count == 2
    torch.testing.assert_close(outputs, expected)
