"""Wiring by hand, and against what happens when one channel is perturbed."""

import pytest
import torch
from torch import nn

from experiments.models import build_model
from experiments.vision import import_torchvision
from gconv import GroupedConv2d, Partition, channel_shuffle
from gconv.wiring import trace_wiring


def test_alexnet_conv1_belongs_to_the_groups_of_conv2_that_read_it():
    wiring = trace_wiring(build_model("alexnet", groups=2, norm="batch", head="average"), (3, 112, 112))
    assert list(wiring) == ["conv1", "conv2", "conv3", "conv4", "conv5"]
    assert set(wiring["conv1"].computed_by) == {0}
    assert wiring["conv1"].reading_groups() == [0] * 48 + [1] * 48
    assert wiring["conv2"].computed_by == (0,) * 128 + (1,) * 128
    assert wiring["conv2"].reading_groups() == [0] * 256, "conv3 is dense: one group reads everything"
    assert wiring["conv3"].reading_groups() == [0] * 192 + [1] * 192
    assert wiring["conv5"].reading_groups() == [None] * 256, "no convolution reads conv5"


def test_uneven_groups_read_by_their_sizes():
    wiring = trace_wiring(build_model("small", groups="log:3"), (3, 32, 32))
    assert wiring["conv1"].reading_groups() == [0] * 16 + [1] * 8 + [2] * 8


class Net(nn.Module):
    """Shuffle, concatenation, a residual sum and a chunk between grouped convolutions."""

    def __init__(self):
        super().__init__()
        self.a = GroupedConv2d(4, 8, 1, groups=2)
        self.b = nn.Conv2d(8, 8, 1, groups=4)
        self.c = GroupedConv2d(16, 6, 1, groups="4,2", in_groups="12,4")
        self.d = nn.Conv2d(3, 4, 1)
        self.e = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        a = torch.relu(self.norm(self.a(x)))
        shuffled = channel_shuffle(a, Partition.uniform(8, 2))
        b = self.b(shuffled) + a
        c = self.c(torch.cat([b, shuffled], 1))
        left, right = c.chunk(2, 1)
        return self.d(left) + self.e(right).mean((2, 3), keepdim=True)


def moved_inputs(model: nn.Module, x: torch.Tensor, convolutions: list[str], source: str, channel: int) -> dict:
    """Which input channels of each convolution move when one filter moves and all convolutions else stand still."""
    modules = dict(model.named_modules())
    outputs: dict[str, torch.Tensor] = {}
    inputs: dict[float, dict[str, torch.Tensor]] = {}
    for bump in (0.0, 10.0, -10.0):  # two ways, since a ReLU hides one
        seen = inputs.setdefault(bump, {})

        def hook(name, seen=seen, bump=bump):
            def freeze(_module, args, output):
                seen[name] = args[0].clone()
                kept = outputs.setdefault(name, output).clone()
                if name == source:
                    kept[:, channel] += bump
                return kept

            return freeze

        handles = [modules[name].register_forward_hook(hook(name)) for name in convolutions]
        with torch.no_grad():
            model(x)
        for handle in handles:
            handle.remove()
    return {
        name: ((inputs[10.0][name] != x0) | (inputs[-10.0][name] != x0))
        .flatten(2)
        .any(2)[0]
        .nonzero()
        .flatten()
        .tolist()
        for name, x0 in inputs[0.0].items()
    }


def in_labels(module: nn.Conv2d | GroupedConv2d) -> tuple[int, ...]:
    if isinstance(module, GroupedConv2d):
        return module.geometry.in_groups.labels
    return Partition.uniform(module.in_channels, module.groups).labels


@pytest.mark.parametrize(
    "model", [Net(), build_model("small", groups="log:3", width=8)], ids=["shuffle-cat-sum", "small"]
)
def test_wiring_agrees_with_perturbing_one_filter(model):
    torch.manual_seed(0)
    model.eval()
    shape = (4, 5, 5) if isinstance(model, Net) else (3, 16, 16)
    wiring = trace_wiring(model, shape)
    x = torch.randn(1, *shape)
    for name, layer in wiring.items():
        for channel in range(len(layer.computed_by)):
            for reader, moved in moved_inputs(model, x, list(wiring), name, channel).items():
                claimed = [i for i, sources in enumerate(wiring[reader].sources) if (name, channel) in sources]
                assert claimed == moved, (name, channel, reader)
                groups = {in_labels(model.get_submodule(reader))[i] for i in moved}
                assert groups == set(layer.read_by.get(reader, {channel: ()})[channel])


def test_a_module_called_twice_reads_from_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 4, 1)
            self.second = nn.Conv2d(2, 2, 1)

        def forward(self, x):
            left, right = self.first(x).chunk(2, 1)
            return self.second(left) + self.second(right)

    wiring = trace_wiring(Twice(), (3, 4, 4))
    assert wiring["second"].sources == ({("first", 0), ("first", 2)}, {("first", 1), ("first", 3)})
    assert wiring["first"].reading_groups() == [0, 0, 0, 0]


def test_maps_joined_in_space_come_from_both():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1), nn.Conv2d(2, 1, 1)

        def forward(self, x):
            return self.c(torch.relu(torch.cat([self.a(x), torch.add(self.b(x), other=self.b(x))], 2)))

    wiring = trace_wiring(Joined(), (3, 4, 4))
    assert wiring["c"].sources == ({("a", 0), ("b", 0)}, {("a", 1), ("b", 1)})
    assert wiring["b"].read_by["c"] == [frozenset({0})] * 2


def test_a_filter_read_by_several_groups_says_so():
    class Reused(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 2, 1)
            self.second = nn.Conv2d(4, 4, 1, groups=2)

        def forward(self, x):
            y = self.first(x)
            return self.second(torch.cat([y, y], 1))

    layer = trace_wiring(Reused(), (3, 4, 4))["first"]
    assert layer.read_by["second"] == [frozenset({0, 1})] * 2
    assert layer.reading_groups() == [None, None]


@pytest.mark.parametrize("name", ["alexnet", "resnet18", "shufflenet_v2_x0_5", "mobilenet_v2", "densenet121"])
def test_torchvision_models_can_be_traced(name):
    model = import_torchvision().models.get_model(name, weights=None)
    wiring = trace_wiring(model, (3, 64, 64))
    assert len(wiring) == sum(isinstance(m, nn.Conv2d) for m in model.modules())
    depthwise = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups == m.in_channels]
    for layer in depthwise:
        assert wiring[layer].computed_by == tuple(range(len(wiring[layer].computed_by)))


def test_a_model_that_cannot_be_traced_is_named():
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match="Branches"):
        trace_wiring(Branches(), (3, 4, 4))


def test_an_unknown_operation_is_named():
    class Sorts(nn.Module):
        def forward(self, x):
            return torch.sort(x, dim=1).values

    with pytest.raises(ValueError, match="sort"):
        trace_wiring(Sorts(), (3, 4, 4))
