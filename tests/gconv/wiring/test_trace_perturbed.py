"""Wiring against the numerical truth: perturb one filter, see which inputs of which convolutions move."""

import pytest
import torch
from torch import nn

from experiments.models import MODELS, build_model
from experiments.vision import import_torchvision
from gconv import GroupedConv2d, Partition, channel_shuffle
from gconv.wiring import trace_wiring


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


BUMP = 10.0


def moved_inputs(
    model: nn.Module, shape: tuple[int, ...], filters: list[tuple[str, int]], batch: int = 48
) -> list[dict[str, list[int]]]:
    """Return for each filter the input channels of each convolution that change when the output of this filter changes.

    All convolutions return fixed noise. The one whose filter is tested adds a constant to its output. So the inputs of
    a convolution change only by what it reads directly. Each filter is tested by two images of a batch, with a positive
    and a negative constant, because a ReLU may hide one; the first image has none. The noise is positive, because after
    a ReLU that returns only zeros a gate would hide everything.
    """
    modules = {name: model.get_submodule(name) for name in convolutions(model)}
    generator = torch.Generator().manual_seed(0)
    noise: dict[tuple[str, int], torch.Tensor] = {}
    tried: list[tuple[str, int, float]] = []
    moved: list[dict[str, set[int]]] = []

    def stand_still(name):
        forward, calls = modules[name].forward, []

        def stood(x):
            call = len(calls) % max(1, times.get(name, 1))
            calls.append(call)
            if not tried:  # the first run: number of calls, and output shapes
                times[name] = len(calls)
                noise[name, len(calls) - 1] = 0.5 + torch.rand(forward(x).shape, generator=generator, dtype=x.dtype)
                return noise[name, len(calls) - 1]
            far = (x[1:] - x[:1]).abs().flatten(2).amax(2) > 1e-9
            for place, channel in far.nonzero().tolist():
                moved[place // 2].setdefault(name, set()).add(channel)
            y = noise[name, call].expand(1 + len(tried), -1, -1, -1).clone()
            for place, (source, channel, bump) in enumerate(tried, 1):
                if source == name:
                    y[place, channel] += bump
            return y

        return stood

    times: dict[str, int] = {}
    for name, module in modules.items():
        module.forward = stand_still(name)
    image = torch.randn(1, *shape, generator=generator, dtype=torch.float64)
    readers: list[dict[str, list[int]]] = []
    try:
        with torch.no_grad():
            model(image)
            for part in range(0, len(filters), batch):
                some = filters[part : part + batch]
                tried[:] = [(*one, bump) for one in some for bump in (BUMP, -BUMP)]
                moved[:] = [{} for _ in some]
                model(image.expand(1 + len(tried), -1, -1, -1))
                readers += [{name: sorted(channels) for name, channels in one.items()} for one in moved]
    finally:
        for module in modules.values():
            del module.forward
    return readers


def convolutions(model: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d | GroupedConv2d)]


def in_labels(module: nn.Module) -> tuple[int, ...]:
    if isinstance(module, GroupedConv2d):
        return module.geometry.in_groups.labels
    assert isinstance(module, nn.Conv2d)
    return Partition.uniform(module.in_channels, module.groups).labels


def check_against_perturbation(model: nn.Module, shape: tuple[int, ...], count: int | None, monkeypatch):
    """Compare the wiring of some filters of each layer, or of all, with perturbations."""
    for scaling in ("layer_norm", "group_norm", "local_response_norm"):  # counts as keeping channels separate
        monkeypatch.setattr(torch.nn.functional, scaling, lambda x, *_, **__: x)
    model.double().eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():  # no scale may be 0 or 1e-6, which would hide changes
        if parameter.dim() not in (2, 4):
            parameter.data.uniform_(0.5, 1.5, generator=generator)
    wiring = trace_wiring(model, shape)
    filters = [(name, channel) for name, layer in wiring.items() for channel in range(len(layer.computed_by))]
    if count is not None:  # spread over the network, so that one in every few layers is tested
        filters = filters[:: max(1, len(filters) // count)]
    labels = {name: in_labels(model.get_submodule(name)) for name in wiring}
    for (name, channel), moved in zip(filters, moved_inputs(model, shape, filters), strict=True):
        read_by = wiring[name].read_by
        assert {reader for reader, read in read_by.items() if read[channel]} == set(moved), (name, channel)
        for reader, channels in moved.items():
            claimed = [i for i, sources in enumerate(wiring[reader].sources) if (name, channel) in sources]
            assert claimed == channels, (name, channel, reader)
            assert read_by[reader][channel] == {labels[reader][i] for i in channels}


SUITE = {  # arguments and image size where the defaults are large; a model that is not here is tried with its defaults
    "alexnet": [({"groups": 2, "head": "average"}, 67), ({"groups": "log:3", "norm": "batch", "head": "average"}, 67)],
    "lognet": [({"groups": "log:3", "width": 16}, 32), ({"groups": "2:1:1", "width": 16, "shortcut": False}, 32)],
    "mobilenet": [({"multiplier": 0.125, "pointwise": 2}, 32)],
    "nin": [({"variant": "tree-4", "width": 32}, 32)],
    "resnext": [({"cardinality": "2:1:1", "channels": 64, "width": 8, "blocks": [1, 2]}, 32)],
    "shufflenet": [({"groups": 3, "scale": 0.25}, 32), ({"groups": "2:1:1", "shuffle": "random", "width": 64}, 32)],
    "small": [({"groups": "log:3"}, 16)],
}
SUITE_CASES = [(name, *case) for name in MODELS for case in SUITE.get(name, [({}, 32)])]


@pytest.mark.parametrize(("name", "arguments", "size"), SUITE_CASES, ids=[f"{n}-{a}" for n, a, _ in SUITE_CASES])
def test_the_wiring_of_the_suites_models_agrees_with_perturbed_filters(name, arguments, size, monkeypatch):
    model = build_model(name, input_size=size, classes=4, **arguments)
    check_against_perturbation(model, (3, size, size), 24, monkeypatch)


def torchvision_model(name: str) -> nn.Module:
    own = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return import_torchvision().models.get_model(name, weights=None, **own)


def shrunk(family: str) -> nn.Module:
    """Return a network of torchvision's family with few channels and blocks."""
    models = import_torchvision().models
    if family == "resnet":
        return models.ResNet(models.resnet.BasicBlock, [1, 1, 2, 1])
    if family == "resnext":
        return models.ResNet(models.resnet.Bottleneck, [1, 2, 1, 1], groups=4, width_per_group=4)
    if family == "densenet":
        return models.DenseNet(8, (2, 3, 2), 16)
    if family == "shufflenet":
        return models.ShuffleNetV2([2, 3, 2], [8, 16, 32, 64, 128])
    if family == "efficientnet":
        block = models.efficientnet.MBConvConfig
        return models.EfficientNet([block(1, 3, 1, 16, 16, 1), block(4, 5, 2, 16, 24, 3)], dropout=0.1, last_channel=64)
    if family == "convnext":
        block = models.convnext.CNBlockConfig
        return models.ConvNeXt([block(16, 32, 2), block(32, None, 2)])
    if family == "regnet":
        parameters = models.regnet.BlockParams.from_init_params(6, 16, 12.0, 2.0, 8, se_ratio=0.25)
        return models.RegNet(parameters)
    return torchvision_model(family)


SMALL = ["resnet", "resnext", "densenet", "shufflenet", "efficientnet", "convnext", "regnet"]
WHOLE = [
    *("resnet18", "resnext50_32x4d", "densenet121", "shufflenet_v2_x0_5", "mobilenet_v2", "efficientnet_b0"),
    *("convnext_tiny", "regnet_x_400mf", "mobilenet_v3_small", "regnet_y_400mf", "mnasnet0_5", "googlenet"),
]


@pytest.mark.parametrize("family", [*SMALL, "squeezenet1_1"])
def test_torchvisions_families_are_wired_as_perturbing_filters_shows(family, monkeypatch):
    check_against_perturbation(shrunk(family), (3, 32, 32), 24, monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", WHOLE)
def test_torchvisions_models_are_wired_as_perturbing_shows(name, monkeypatch):
    check_against_perturbation(torchvision_model(name), (3, 32, 32), 200, monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("family", SMALL)
def test_torchvisions_families_are_wired_right_for_every_filter(family, monkeypatch):
    check_against_perturbation(shrunk(family), (3, 32, 32), None, monkeypatch)


def test_shuffle_concatenation_and_sums_are_wired_as_perturbing_every_filter_shows(monkeypatch):
    check_against_perturbation(Net(), (4, 5, 5), None, monkeypatch)
