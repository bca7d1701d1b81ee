"""Existing models cut into groups: by hand, against the dense layer, and on torchvision's."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from experiments.vision import import_torchvision
from gconv import ChannelPermutation, GroupedConv2d, Partition
from gconv.cost import count_cost
from gconv.regroup import regroup
from gconv.wiring import trace_wiring


def block_diagonal_(conv, groups, seed=None):
    """Set every weight between groups to zero; with a seed the channels are in a random order."""
    in_labels = torch.tensor(Partition.of(groups, conv.in_channels).labels)
    out_labels = torch.tensor(Partition.of(groups, conv.out_channels).labels)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        in_labels = in_labels[torch.randperm(len(in_labels), generator=generator)]
        out_labels = out_labels[torch.randperm(len(out_labels), generator=generator)]
    with torch.no_grad():
        conv.weight *= (out_labels[:, None] == in_labels)[..., None, None]
    return conv


OPTIONS = [
    {},
    {"stride": 2, "padding": 1},
    {"padding": "same", "dilation": 2},
    {"padding": (2, 0), "padding_mode": "reflect"},
    {"padding": "valid", "bias": False},
    {"padding": "same", "padding_mode": "circular"},
    {"stride": (1, 2), "dilation": (2, 1)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", [nn.Conv2d, GroupedConv2d])
@pytest.mark.parametrize(("groups", "keep"), [("4", "slice"), ("log:3", "slice"), ("log:3", "energy"), ("4", "energy")])
def test_a_layer_that_is_block_diagonal_computes_the_same(options, kind, groups, keep):
    torch.manual_seed(0)
    conv = block_diagonal_(kind(16, 24, 3, **options), groups, seed=1 if keep == "energy" else None)
    x = torch.randn(2, 16, 9, 8)
    result = regroup(conv, groups, keep=keep)
    torch.testing.assert_close(result.model(x), conv(x), atol=1e-5, rtol=1e-5)
    (layer,) = result.changed
    assert layer.kept == pytest.approx(1)
    assert (str(layer.in_groups), str(layer.out_groups)) == (groups, groups)
    assert count_cost(result.model, (16, 9, 8)).macs == result.costs((16, 9, 8))[1].macs


@given(st.integers(0, 10**6), st.sampled_from(["2", "log:3", "~3", "3:1", "8"]), st.sampled_from(["slice", "energy"]))
@settings(max_examples=25)
def test_the_kept_weights_are_those_of_the_dense_layer_and_the_others_nought(seed, groups, keep):
    torch.manual_seed(seed)
    conv = nn.Conv2d(8, 16, (1, 3))
    result = regroup(conv, groups, keep=keep)
    # The weights of a layer are its responses to unit impulses.
    impulse = torch.zeros(8, 8, 1, 5)
    impulse[range(8), range(8), 0, 2] = 1
    with torch.no_grad():
        dense, cut = (m(impulse) - m(torch.zeros(1, 8, 1, 5)) for m in (conv, result.model))
    inside = (cut != 0).flatten(2).any(2)
    torch.testing.assert_close(cut, torch.where(inside[..., None, None], dense, 0), atol=1e-6, rtol=1e-5)
    (layer,) = result.changed
    links = sum(i * o for i, o in zip(layer.in_groups.sizes, layer.out_groups.sizes, strict=True))
    assert inside.sum() == links
    energy = conv.weight.detach().square().sum((2, 3)).T
    assert layer.kept == pytest.approx((energy[inside].sum() / energy.sum()).item(), rel=1e-5)


def test_slices_by_hand():
    conv = nn.Conv2d(4, 4, 1, bias=False)
    conv.weight.data = torch.arange(1.0, 17).view(4, 4, 1, 1)
    result = regroup(conv, "2:1:1")
    assert result.model.weight.flatten().tolist() == [1, 2, 5, 6, 11, 16]
    assert result.changed[0].kept == pytest.approx((1 + 4 + 25 + 36 + 121 + 256) / (16 * 17 * 33 / 6))


def test_energy_puts_hidden_blocks_together_and_leaves_channels_in_their_places():
    conv = nn.Conv2d(4, 4, 1)
    conv.weight.data = torch.tensor([[1.0, 0, 2, 0], [0, 3, 0, 4], [0, 5, 0, 6], [7, 0, 8, 0]]).view(4, 4, 1, 1)
    slices, energy = regroup(conv, 2), regroup(conv, 2, keep="energy")
    assert slices.changed[0].kept == pytest.approx((1 + 9 + 36 + 64) / 204)
    assert energy.changed[0].kept == 1
    assert list(dict(energy.model.named_children())) == ["gather", "conv", "scatter"]
    x = torch.randn(1, 4, 2, 2)
    torch.testing.assert_close(energy.model(x), conv(x))


def test_energy_is_never_below_slice_and_needs_no_permutation_where_slice_is_best():
    net = nn.Sequential(nn.Conv2d(8, 16, 3), block_diagonal_(nn.Conv2d(16, 16, 1), "log:3"))
    slices, energy = regroup(net, "log:3"), regroup(net, "log:3", keep="energy")
    assert energy.changed[0].kept > slices.changed[0].kept
    assert type(energy.model[1]) is GroupedConv2d
    assert torch.equal(energy.model[1].weight, slices.model[1].weight)


def test_the_original_stays_and_no_luck_is_drawn():
    net = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)).train()
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    result = regroup(net, 4, keep="energy")
    with torch.no_grad():
        for p in result.model.parameters():
            p.zero_()
    assert torch.equal(torch.get_rng_state(), state)
    assert type(net[0]) is nn.Conv2d
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_dtype_device_training_and_requires_grad_stay():
    conv = nn.Conv2d(8, 8, 3, dtype=torch.bfloat16).eval()
    conv.weight.requires_grad_(False)
    for keep in ("slice", "energy"):
        model = regroup(nn.ModuleDict({"a": conv}), "log:3", keep=keep).model
        (cut,) = (m for m in model.modules() if isinstance(m, GroupedConv2d))
        assert cut.weight.dtype == cut.bias.dtype == torch.bfloat16
        assert (cut.weight.requires_grad, cut.bias.requires_grad) == (False, True)
        assert not any(m.training for m in model["a"].modules())


def test_a_layer_used_twice_is_cut_once_and_still_one():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = self.again = nn.Conv2d(4, 4, 1)
            self.inner = nn.ModuleList([self.first])

        def forward(self, x):
            return self.inner[0](self.again(self.first(x)))

    result = regroup(Twice(), 2, where="again")
    assert [layer.name for layer in result.changed] == ["again"]
    assert result.model.first is result.model.again is result.model.inner[0]
    assert isinstance(result.model.first, GroupedConv2d)
    before, after = result.costs((4, 3, 3))
    assert (before.macs, after.macs) == (3 * 16 * 9, 3 * 8 * 9)


def test_convolutions_that_cannot_be_cut_are_listed_with_a_reason():
    tied, hooked = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
    hooked.register_forward_pre_hook(lambda *_: None)
    net = nn.ModuleDict(
        {
            "fits": nn.Conv2d(4, 8, 3),
            "stem": nn.Conv2d(3, 8, 3),
            "depthwise": nn.Conv2d(4, 8, 3, groups=4),
            "grouped": nn.Conv2d(8, 8, 3, groups=2),
            "uneven": GroupedConv2d(8, 8, 3, groups="log:3"),
            "up": nn.ConvTranspose2d(4, 4, 2),
            "line": nn.Conv1d(4, 4, 1),
            "lazy": nn.LazyConv2d(4, 1),
            "own": type("Standardised", (nn.Conv2d,), {})(4, 4, 1),
            "tied": tied,
            "tied too": nn.Conv2d(4, 4, 1),
            "hooked": hooked,
            "linear": nn.Linear(4, 4),
        }
    )
    net["tied too"].weight = tied.weight
    result = regroup(net, 4)
    assert [layer.name for layer in result.changed] == ["fits"]
    words = {
        "stem": "3 channels cannot be cut into 4 equal groups",
        "depthwise": "depthwise",
        "grouped": "groups already: 2",
        "uneven": "groups already: log:3",
        "up": "ConvTranspose2d",
        "line": "Conv1d",
        "lazy": "LazyConv2d",
        "own": "Standardised",
        "tied": "shares",
        "tied too": "shares",
        "hooked": "hooks",
    }
    assert list(result.skipped) == list(words)
    for name, word in words.items():
        assert word in result.skipped[name]
        assert type(result.model[name]) is type(net[name])


NET = nn.Sequential()
for number in range(3):
    NET.add_module(f"block{number}", nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1)))


@pytest.mark.parametrize(
    ("where", "names"),
    [
        (None, ["block0.0", "block0.2", "block1.0", "block1.2", "block2.0", "block2.2"]),
        ("block1.2", ["block1.2"]),
        ("block*.0", ["block0.0", "block1.0", "block2.0"]),
        ("block2.*, block0.2", ["block0.2", "block2.0", "block2.2"]),
        (lambda name, module: name > "block1" and module is not NET[2][0], ["block1.0", "block1.2", "block2.2"]),
    ],
)
def test_where_picks_layers_by_name_or_by_a_function_of_the_original_modules(where, names):
    assert [layer.name for layer in regroup(NET, 2, where).changed] == names


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"where": "blok1.0"}, ["'blok1.0'", "block1.0"]),
        ({"where": "block1.0,nothing"}, ["'nothing'", "there are: block0.0, block0.2"]),
        ({"where": "block1"}, ["write block1.*"]),
        ({"where": lambda name, module: False}, ["none of 6 convolutions", "block0.0"]),
        ({"groups": 3}, ["0 of 6 convolutions", "block0.0: 4 channels cannot be cut into 3 equal groups"]),
        ({"groups": "logs"}, ["'logs' cannot be read", "log:4"]),
        ({"groups": 1}, ["one group"]),
        ({"keep": "all"}, ["'all'", "'slice' or 'energy'"]),
        ({"model": nn.Linear(2, 2)}, ["Linear has no convolution"]),
        ({"model": NET.to_empty(device="meta"), "keep": "energy"}, ["meta", "keep='slice'"]),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, list) else None,
)
def test_arguments_that_cut_nothing_raise_one_line(arguments, words):
    with pytest.raises(ValueError) as caught:
        regroup(**{"model": NET, "groups": 2, **arguments})
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_weights_that_are_no_numbers_are_skipped_by_energy():
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    net[0].weight.data[0] = float("inf")
    assert "finite" in regroup(net, 2, keep="energy").skipped["0"]


@pytest.mark.parametrize(
    ("groups", "share"), [("2", 1 / 2), ("8", 1 / 8), ("log:3", 3 / 8), ("log:5", 1 / 3 + 2 / 768)]
)
def test_a_regrouped_layer_costs_its_share_of_dense(groups, share):
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.Conv2d(32, 64, 1))
    before, after = regroup(net, groups, where="1,2", keep="energy").costs((3, 10, 10))
    assert [layer.name for layer in after.layers] == [layer.name for layer in before.layers] == ["0", "1", "2"]
    assert after.layers[0] == before.layers[0]
    for dense, cut in zip(before.layers[1:], after.layers[1:], strict=True):
        assert cut.macs == pytest.approx(dense.macs * share)
        assert cut.activations == dense.activations
    assert after.layers[1].parameters == pytest.approx(before.layers[1].parameters * share)
    assert after.layers[2].parameters == pytest.approx(32 * 64 * share + 64)


def test_any_sizes_cost_the_sum_of_their_blocks():
    layer = nn.Conv2d(12, 10, 3, bias=False)
    before, after = regroup(layer, "~5:2:1").costs((12, 5, 5))
    inputs, outputs = (Partition.of("~5:2:1", channels).sizes for channels in (12, 10))
    links = sum(i * o for i, o in zip(inputs, outputs, strict=True))
    assert after.macs * 12 * 10 == before.macs * links
    assert after.parameters == 9 * links


@pytest.mark.parametrize(
    ("name", "groups", "keep"),
    [("resnet18", "log:4", "slice"), ("shufflenet_v2_x0_5", "~3", "energy")],
)
def test_a_regrouped_torchvision_model_runs_learns_and_is_traced_and_counted(name, groups, keep):
    torch.manual_seed(0)
    net = import_torchvision().models.get_model(name, weights=None)
    result = regroup(net, groups, keep=keep)
    output = result.model(torch.randn(2, 3, 32, 32))
    assert output.shape == (2, 1000)
    output.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in result.model.parameters())
    before, after = result.costs((3, 32, 32))
    changed = {layer.name: layer for layer in result.changed}
    for dense, cut in zip(before.layers, after.layers, strict=True):
        if dense.name in changed:
            ins, outs = changed[dense.name].in_groups, changed[dense.name].out_groups
            links = sum(i * o for i, o in zip(ins.sizes, outs.sizes, strict=True))
            assert cut.macs * ins.channels * outs.channels == dense.macs * links
        else:
            assert cut == dense
    wiring = trace_wiring(result.model, (3, 32, 32))
    traced = [wiring.get(layer.name, wiring.get(f"{layer.name}.conv")) for layer in result.changed]
    for layer, wires in zip(result.changed, traced, strict=True):
        assert set(wires.computed_by) == set(range(layer.out_groups.groups))


def test_permutations_go_where_the_model_goes_and_are_stored():
    conv = block_diagonal_(nn.Conv2d(8, 8, 1), 2, seed=3)
    model = regroup(conv, 2, keep="energy").model
    assert any(isinstance(m, ChannelPermutation) for m in model.modules())
    other = regroup(block_diagonal_(nn.Conv2d(8, 8, 1), 2, seed=4), 2, keep="energy").model
    other.load_state_dict(model.state_dict())
    x = torch.randn(1, 8, 2, 2)
    torch.testing.assert_close(other(x), conv(x))


def test_models_on_the_meta_device_are_cut_and_counted_without_weights():
    with torch.device("meta"):
        net = import_torchvision().models.get_model("vgg16", weights=None)
        result = regroup(net, 4)
        before, after = result.costs((3, 224, 224))
    assert all(p.is_meta for p in result.model.parameters())
    assert {layer.kept for layer in result.changed} == {None}
    assert list(result.skipped) == ["features.0"]
    linear = 25088 * 4096 + 4096 * 4096 + 4096 * 1000
    first = 224 * 224 * 3 * 64 * 9
    assert after.macs - linear - first == (before.macs - linear - first) / 4
