"""Wiring of models against values set by hand, and the errors for models that cannot be traced."""

import time

import pytest
import torch
from torch import nn

from experiments.models import build_model
from experiments.vision import import_torchvision
from gconv import GroupedConv2d, Partition
from gconv.shuffle import ChannelPermutation, ChannelShuffle
from gconv.wiring import computing_groups, trace_wiring
from gconv.wiring.trace import LayerWiring


def test_alexnet_conv1_belongs_to_the_groups_of_conv2_that_read_it():
    with torch.device("meta"):
        model = build_model("alexnet", groups=2, norm="batch", head="average")
    wiring = trace_wiring(model, (3, 112, 112))
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
    lines = str(wiring["conv1"]).splitlines()
    assert lines == [
        "conv1: 32 filters",
        "  computed by group 0 (32)",
        "  read by conv2 group 0 (16), 1 (8), 2 (8)",
    ]


def test_a_printed_layer_shows_shared_and_unread_filters_and_stays_short():
    none, both = frozenset(), frozenset({0, 1})
    sets = [both, frozenset({1}), both, none]
    layer = LayerWiring("c", (0, 0, 1, 1), (), (), {f"r{k}": sets for k in range(8)})
    lines = str(layer).splitlines()
    assert lines[1:3] == ["  computed by group 0 (2), 1 (2)", "  read by r0 group none (1), 0+1 (2), 1 (1)"]
    assert lines[-1] == "  and read by 2 more" and len(lines) == 9
    depthwise = LayerWiring("d", tuple(range(64)), (), ())
    assert str(depthwise).endswith("10 (1), 11 (1), and 52 more")


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


class Lognet(nn.Module):
    """Two stages with a shortcut, y = relu(norm(conv(x)) + x), cut differently."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.first = GroupedConv2d(4, 4, 3, padding=1, groups="2,1,1")
        self.second = GroupedConv2d(4, 4, 3, padding=1, groups=2)
        self.norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(self.norms[0](self.first(x)) + x)
        return torch.relu(self.norms[1](self.second(x)) + x)


def test_a_filter_before_a_shortcut_is_read_by_its_stage_and_by_the_readers_of_the_sum():
    wiring = trace_wiring(Lognet(), (3, 4, 4))
    own, next_stage = [frozenset({g}) for g in (0, 0, 1, 2)], [frozenset({g}) for g in (0, 0, 1, 1)]
    assert wiring["stem"].read_by == {"first": own, "second": next_stage}
    assert wiring["stem"].reading_groups() == [0, 0, 1, 2], "the first that cuts"
    assert wiring["stem"].reading_groups("second") == [0, 0, 1, 1]
    assert wiring["second"].sources == tuple({("stem", c), ("first", c)} for c in range(4))


def test_several_readers_and_none_are_distinguished():
    class Reused(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 3, 1)
            self.second = nn.Conv2d(4, 4, 1, groups=2)

        def forward(self, x):
            y = self.first(x)
            return self.second(torch.cat([y[:, :2], y[:, :1], y[:, :1]], 1))

    wiring = trace_wiring(Reused(), (3, 4, 4))
    assert wiring["first"].reading_sets() == [{0, 1}, {0}, set()]
    assert wiring["first"].reading_groups() == [None, 0, None]
    assert wiring["second"].reading_sets() == [set()] * 4
    with pytest.raises(KeyError):
        wiring["second"].reading_sets("first")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_uneven_shuffles_and_permutations_move_the_labels_wherever_the_model_lies(device):
    with torch.device(device):
        shuffle = ChannelShuffle(Partition((4, 1, 1)))
        permute = ChannelPermutation([5, 0, 1, 2, 3, 4])
        back = ChannelPermutation([1, 2, 3, 4, 5, 0])
        model = nn.Sequential(nn.Conv2d(3, 6, 1), permute, GroupedConv2d(6, 6, 1, groups="3,2,1"), back, shuffle)
        model.append(nn.Conv2d(6, 6, 1, groups=6))
        wiring = trace_wiring(model, (3, 8, 8))
    assert wiring["0"].reading_groups() == [0, 0, 1, 1, 2, 0]
    # Behind `back` the groups lie 0 0 1 1 2 0; places (1/8, 3/8, 5/8, 7/8), 1/2, 1/2 interleave them as 0 1 4 5 2 3.
    order = [1, 2, 5, 0, 3, 4]
    assert wiring["5"].sources == tuple({("2", c)} for c in order)


def torchvision_model(name: str) -> nn.Module:
    own = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return import_torchvision().models.get_model(name, weights=None, **own)


FAST = ["alexnet", "googlenet", "densenet121", "vit_b_16", "swin_t"]
SLOW = [
    "vgg16_bn",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "convnext_tiny",
    "maxvit_t",
    "mobilenet_v3_large",
    "resnet50",
]


@pytest.mark.parametrize("name", FAST + [pytest.param(name, marks=pytest.mark.slow) for name in SLOW])
def test_torchvisions_models_are_traced_whole_and_soon_and_left_as_they_were(name):
    with torch.device("meta"):
        model = torchvision_model(name)
    before = {key: id(value) for key, value in vars(model).items()}
    began = time.process_time()
    wiring = trace_wiring(model, (3, 224, 224))
    assert time.process_time() - began < 10
    assert set(wiring) == set(computing_groups(model)), "auxiliary heads too: it is in training"
    assert {key: id(value) for key, value in vars(model).items()} == before and model.training


def test_auxiliary_heads_are_left_out_outside_training():
    wiring = trace_wiring(torchvision_model("googlenet").eval(), (3, 64, 64))
    assert len(wiring) == 57 and not any(name.startswith("aux") for name in wiring)


def test_computing_groups_need_no_tracing():
    model = nn.Sequential(nn.Conv2d(4, 2, 1, groups=2), GroupedConv2d(4, 4, 1, groups="2,1,1"), Branches())
    assert computing_groups(model) == {"0": (0, 1), "1": (0, 0, 1, 2)}


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Sorts(nn.Module):
    def forward(self, x):
        return torch.sort(x, dim=1).values


class Split(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.conv(x) if len(x) > 1 else x


STILL = r"; without wiring these still work: count_cost, and computing_groups \(.*\)$"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Branches(), r"^Branches: torch.fx cannot trace \(test_trace.py:\d+: return x if x.sum\(\) > 0 else -x\): "),
        (
            nn.Sequential(nn.Identity(), Split()),
            r"^Sequential: torch.fx cannot trace 1 \(test_trace.py:\d+: .*\): .*len",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 4, 1), Sorts(), nn.Conv2d(4, 4, 1)),
            r"^Sequential.*: the wiring is not followed through 'sort' in 1 \(test_trace.py:\d+: return "
            r"torch.sort\(x, dim=1\).values\): .*, and 2 reads what comes of it",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 4, 1), Branches(), nn.Conv2d(4, 4, 1)),
            "not followed through '_1' in 1: torch.fx cannot look into it, and 2 reads",
        ),
        (
            nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(5, 4, 1)),
            "^Sequential, images of \\(3, 4, 4\\): does not take such images at '_1' in 1: .*channel",
        ),
    ],
    ids=["root branches", "a part branches", "unknown operation", "opaque part", "wrong channels"],
)
def test_a_model_that_cannot_be_traced_raises_one_line_with_the_alternatives(model, message):
    with pytest.raises(ValueError, match=message + ".*" + STILL) as error:
        trace_wiring(model, (3, 4, 4))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("late", [Sorts(), Branches(), nn.LSTM(4, 2)], ids=["sort", "control flow", "recurrent"])
def test_an_unknown_operation_is_no_error_if_no_convolution_reads_its_result(late):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, groups=2), late)
    assert trace_wiring(model, (3, 4, 4))["0"].reading_groups() == [0, 0, 1, 1]
