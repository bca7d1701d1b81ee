"""GroupedConv2d against nn.Conv2d and against loops in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gconv import GroupedConv2d, Partition, forced_kernel
from gconv.kernels import OPS, runnable
from gconv.kernels.choose import chosen_by, pixel_bits
from gconv.kernels.packing import cheapest_packing
from gconv.kernels.table import Kind
from gconv.operator import dispatch
from gconv.operator.library import InputError

EVERY_KERNEL = ("loop", "merged", "tails", "packed", "nested", "masked")  # of uneven groups


def loops(layer: GroupedConv2d, x: torch.Tensor) -> torch.Tensor:
    """Compute the layer by its definition: one nn.Conv2d per group in float64."""
    outputs, weights = [], layer.group_weights()
    biases = [None] * layer.groups if layer.bias is None else layer.bias.split(list(layer.geometry.out_groups.sizes))
    for part, weight, bias in zip(
        x.double().split(list(layer.geometry.in_groups.sizes), 1), weights, biases, strict=True
    ):
        conv = nn.Conv2d(
            weight.shape[1],
            weight.shape[0],
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            bias=bias is not None,
            padding_mode=layer.padding_mode,
        ).double()
        conv.weight.data.copy_(weight)
        if bias is not None:
            conv.bias.data.copy_(bias)
        outputs.append(conv(part))
    return torch.cat(outputs, 1).detach()


@st.composite
def layers(draw):
    groups = draw(st.integers(1, 4))
    sizes = st.lists(st.integers(1, 7), min_size=groups, max_size=groups)
    in_sizes, out_sizes = draw(sizes), draw(sizes)
    kernel = (draw(st.sampled_from([1, 3, 5])), draw(st.sampled_from([1, 3])))
    same = draw(st.booleans())
    layer = GroupedConv2d(
        sum(in_sizes),
        sum(out_sizes),
        kernel,
        stride=1 if same else (draw(st.integers(1, 3)), draw(st.integers(1, 2))),
        padding="same" if same else (draw(st.integers(0, 2)), draw(st.integers(0, 2))),
        dilation=draw(st.integers(1, 2)),
        groups=out_sizes,
        in_groups=in_sizes,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate", "circular"])),
    )
    return layer, draw(st.integers(0, 3))


@settings(max_examples=40)
@given(layers(), st.sampled_from(["contiguous", "channels_last", "strided"]), st.integers(0, 10))
def test_every_kernel_equals_the_definition(case, layout, seed):
    layer, batch = case
    torch.manual_seed(seed)
    x = torch.randn(batch, layer.in_channels, 11, 12)
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    elif layout == "strided":
        x = torch.randn(batch, 12, 11, layer.in_channels).permute(0, 3, 2, 1)
    expected = loops(layer, x)
    for kernel in ("reference", *runnable(layer.geometry, torch.float32, "cpu")):
        with forced_kernel(kernel):
            y = layer(x)
        assert y.shape == expected.shape
        torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 4, 8], ids=lambda g: f"groups={g}")
def test_with_equal_groups_it_is_nn_conv2d(groups):
    torch.manual_seed(3)
    theirs = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=groups)
    torch.manual_seed(3)
    ours = GroupedConv2d(8, 16, 3, stride=2, padding=1, groups=groups)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), f"initial {name} differs under the same seed"
    x = torch.randn(2, 8, 9, 9)
    assert torch.equal(ours(x), theirs(x))
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert (ours.in_channels, ours.out_channels, ours.groups) == (8, 16, groups)
    assert (ours.stride, ours.padding, ours.kernel_size) == (theirs.stride, theirs.padding, theirs.kernel_size)


def test_a_state_dict_of_other_groups_is_refused_by_name(tmp_path):
    """8·8 + 4·4 + 2·2 + 2·2 weights, in any order: the shapes do not tell."""
    saved = nn.Sequential(nn.ReLU(), GroupedConv2d(16, 16, 3, groups="8,4,2,2"))
    torch.save(saved.state_dict(), tmp_path / "weights.pt")
    state = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert list(state) == ["1.weight", "1.bias"], "no key of its own"
    other = nn.Sequential(nn.ReLU(), GroupedConv2d(16, 16, 3, groups="2,2,4,8"))
    before = other[1].weight.clone()
    assert before.shape == saved[1].weight.shape
    for strict in (True, False):
        with pytest.raises(RuntimeError, match="in_groups of 1: 8,4,2,2 in the state dict, 2,2,4,8 here"):
            other.load_state_dict(state, strict=strict)
    assert torch.equal(other[1].weight, before), "nothing is loaded"
    turned = GroupedConv2d(16, 16, 3, groups="2,2,4,8", in_groups="8,4,2,2")
    with pytest.raises(RuntimeError, match="out_groups of the layer: 2,2,4,8 in the state dict, 4,8,2,2 here"):
        GroupedConv2d(16, 16, 3, groups="4,8,2,2", in_groups="8,4,2,2").load_state_dict(turned.state_dict())


@pytest.mark.parametrize("groups", ["8,4,2,2", "log:4"])
def test_a_state_dict_of_the_same_groups_is_loaded_with_and_without_metadata(groups):
    saved, one, two = (GroupedConv2d(16, 16, 3, groups="8,4,2,2") for _ in range(3))
    again = GroupedConv2d(16, 16, 3, groups=groups)
    again.load_state_dict(saved.state_dict())
    one.load_state_dict(dict(saved.state_dict()))  # as a file of tensors alone gives it
    two.load_state_dict(copy.deepcopy(saved).state_dict(), assign=True)
    for layer in (again, one, two):
        assert torch.equal(layer.weight, saved.weight)


@pytest.mark.parametrize("kernel", EVERY_KERNEL)
def test_first_and_second_derivatives(kernel):
    layer = GroupedConv2d(3, 3, 2, padding=1, stride=2, groups="1,2", in_groups="2,1").double()
    x = torch.randn(1, 3, 3, 2, dtype=torch.float64, requires_grad=True)

    def run(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    inputs = (x, layer.weight, layer.bias)
    with forced_kernel(kernel):
        assert torch.autograd.gradcheck(run, inputs)
        assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("kernel", EVERY_KERNEL)
def test_gradients_equal_those_of_the_reference(kernel):
    layer = GroupedConv2d(16, 8, 3, padding=1, groups="log:4")
    x = torch.randn(3, 16, 6, 6, requires_grad=True)
    up = torch.randn(3, 8, 6, 6)

    def gradients(name):
        with forced_kernel(name):
            return torch.autograd.grad((layer(x) * up).sum(), [x, layer.weight, layer.bias])

    for ours, exact in zip(gradients(kernel), gradients("reference"), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5)


def test_each_group_is_initialised_by_its_own_fan_in():
    layer = GroupedConv2d(1000, 600, 3, groups="400,200", in_groups="960,40")
    for weight, inputs in zip(layer.group_weights(), (960, 40), strict=True):
        bound = (inputs * 9) ** -0.5
        assert 0.99 * bound < weight.abs().max() <= bound
    small, large = layer.bias[:400].abs().max(), layer.bias[400:].abs().max()
    assert small <= (960 * 9) ** -0.5 < large <= (40 * 9) ** -0.5


def test_an_unbatched_image_gives_an_unbatched_result():
    layer = GroupedConv2d(4, 6, 3, groups="4,2", in_groups="1,3")
    x = torch.randn(4, 5, 5)
    torch.testing.assert_close(layer(x), layer(x[None])[0])


@pytest.mark.parametrize("groups", [2, "log:3"], ids=str)
def test_autocast_computes_in_its_dtype_and_keeps_parameters(groups):
    layer = GroupedConv2d(8, 8, 3, padding=1, groups=groups)
    x = torch.randn(2, 8, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)


def test_channels_last_in_channels_last_out():
    layer = GroupedConv2d(8, 8, 3, padding=1, groups="log:3").to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 6, 6).to(memory_format=torch.channels_last)
    for kernel in EVERY_KERNEL:
        with forced_kernel(kernel):
            assert layer(x).is_contiguous(memory_format=torch.channels_last), kernel


@pytest.mark.parametrize("kernel", EVERY_KERNEL)
def test_unequal_weights_follow_a_memory_format_and_keep_their_numbers(kernel):
    """The order in memory changes, as for nn.Conv2d; numbers, gradients, state dict and inference do not."""
    torch.manual_seed(0)
    layer = GroupedConv2d(24, 24, 3, padding=1, groups="16,4,4", dtype=torch.float64)
    last = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    length = layer.weight.shape[0]
    assert (layer.weight.stride(), last.weight.stride()) == ((9, 3, 1), (1, 3 * length, length))
    assert torch.equal(layer.weight, last.weight)
    x = torch.randn(2, 24, 5, 6, dtype=torch.float64).to(memory_format=torch.channels_last)
    with forced_kernel(kernel):
        for each in (layer, last):
            each(x).square().sum().backward()
            assert each.weight.grad.stride() == each.weight.stride()
        torch.testing.assert_close(last.weight.grad, layer.weight.grad)
        with torch.no_grad():
            for _ in range(3):  # the weight is kept
                torch.testing.assert_close(last(x), loops(layer, x))
            last.weight.data.mul_(2)  # which torch does not count
            torch.testing.assert_close(last(x) - last.bias.view(-1, 1, 1), 2 * (layer(x) - layer.bias.view(-1, 1, 1)))
            last.weight.data.div_(2)
    layer.load_state_dict(last.state_dict())
    assert layer.weight.is_contiguous()
    assert last.half().weight.stride(0) == 1
    assert last.to(memory_format=torch.contiguous_format).weight.is_contiguous()
    both = torch.empty(1, 2 * length, 3, 3).to(memory_format=torch.channels_last)[0]
    last.weight = nn.Parameter(both[:length])
    assert last.to(memory_format=torch.channels_last).weight.data_ptr() == both.data_ptr(), "a slice stays one"


@pytest.mark.parametrize("groups", [2, "log:3", "5,2,1"], ids=str)
def test_compiles_as_one_graph_with_a_dynamic_batch(groups):
    torch._dynamo.reset()
    layer = GroupedConv2d(8, 8, 3, padding=1, groups=groups)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 3, 5):
        x = torch.randn(batch, 8, 6, 6, requires_grad=True)
        y = compiled(x)
        torch.testing.assert_close(y, layer(x))
        y.sum().backward()


@pytest.mark.slow
def test_inductor_compiles_it():
    layer = GroupedConv2d(8, 8, 3, padding=1, groups="log:3")
    x = torch.randn(2, 8, 6, 6)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), layer(x), rtol=1e-5, atol=1e-5)


def test_vmap_over_the_batch_equals_the_batch():
    layer = GroupedConv2d(8, 8, 3, padding=1, groups="log:3")
    x = torch.randn(3, 2, 8, 6, 6)
    torch.testing.assert_close(torch.vmap(layer)(x), torch.stack([layer(part) for part in x]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"groups": 3}, ["in_channels=8", "3 equal groups", "6 or 9"]),
        ({"groups": "6,2", "in_groups": "4,2,2"}, ["3 groups", "2", "must be equal"]),
        ({"padding": "full"}, ["full", "same"]),
        ({"padding": "same", "stride": 2}, ["same", "stride"]),
        ({"padding_mode": "mirror"}, ["mirror", "reflect"]),
        ({"kernel_size": 0}, ["kernel_size", "at least 1"]),
        ({"kernel_size": [True, 3]}, ["kernel_size", "[True, 3]"]),
    ],
    ids=str,
)
def test_arguments_that_cannot_work_are_named(arguments, words):
    with pytest.raises(ValueError) as error:
        GroupedConv2d(8, 8, **{"kernel_size": 3, **arguments})
    for word in words:
        assert word in str(error.value)


def test_an_input_with_other_channels_is_named():
    with pytest.raises(ValueError, match=r"6 channels.*cut 8"):
        GroupedConv2d(8, 8, 3, groups=2)(torch.randn(1, 6, 5, 5))


def test_native_refuses_unequal_groups():
    with forced_kernel("native"), pytest.raises(ValueError, match="equal groups"):
        GroupedConv2d(8, 8, 3, groups="log:3")(torch.randn(1, 8, 5, 5))


def test_logarithmic_groups_pack_into_two_full_bins():
    sizes = Partition.logarithmic(64, 5).sizes
    packing = cheapest_packing(sizes, sizes)
    assert packing.bins == ((0, 1), (1, 5))
    assert (packing.in_capacity, packing.out_capacity) == (32, 32)


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=8))
def test_a_packing_holds_every_group_and_costs_no_more_than_dense(pairs):
    in_sizes, out_sizes = map(tuple, zip(*pairs, strict=True))
    packing = cheapest_packing(in_sizes, out_sizes)
    assert [g for a, b in packing.bins for g in range(a, b)] == list(range(len(pairs)))
    for a, b in packing.bins:
        assert sum(in_sizes[a:b]) <= packing.in_capacity
        assert sum(out_sizes[a:b]) <= packing.out_capacity
    assert packing.links <= sum(in_sizes) * sum(out_sizes)


def test_the_layer_of_a_plain_loop_in_numpy():
    """Hand-set weights: group 1 doubles its one channel, group 2 adds its two."""
    layer = GroupedConv2d(3, 2, 1, groups="1,1", in_groups="1,2", bias=False)
    layer.weight.data.copy_(torch.tensor([2.0, 1.0, 1.0]).view(3, 1, 1))
    x = torch.tensor([3.0, 4.0, 5.0]).view(1, 3, 1, 1)
    assert layer(x).flatten().tolist() == [6.0, 9.0]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_same_padding_equals_functional_same_padding():
    layer = GroupedConv2d(4, 4, (4, 3), padding="same", dilation=(1, 2), groups=2)
    x = torch.randn(2, 4, 9, 9)
    expected = F.conv2d(x, layer.weight, layer.bias, padding="same", dilation=(1, 2), groups=2)
    torch.testing.assert_close(layer(x), expected)


def goes_straight_to_torch(layer, x):
    """Whether a call computes what nn.Conv2d computes without the operator."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gconv.conv.grouped_conv2d", lambda *_: None)
        return layer(x) is not None


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_equal_groups_that_torch_computes_go_straight_to_it(groups):
    layer, x = GroupedConv2d(8, 8, 3, padding=1, groups=groups), torch.randn(2, 8, 5, 5)
    with chosen_by({}):
        assert goes_straight_to_torch(layer, x)
        assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1, groups=groups))
        with forced_kernel("loop"):
            assert not goes_straight_to_torch(layer, x)
        with torch.autocast("cpu", torch.bfloat16):
            assert not goes_straight_to_torch(layer, x)
        before = dispatch.watch(lambda *_: None)
        assert not goes_straight_to_torch(layer, x)
        dispatch.watch(before)
        with pytest.raises(InputError, match="8"):
            layer(torch.randn(2, 9, 5, 5))


def test_a_kernel_that_was_measured_as_faster_is_not_passed_by():
    layer, x = GroupedConv2d(8, 8, 3, padding=1, groups=2), torch.randn(2, 8, 5, 5)
    kinds = [Kind.of(op, layer.geometry, x.dtype, False, pixel_bits(2, 5, 5)) for op in (*OPS, "step")]
    with chosen_by({kind: {"native": 2e-3, "packed": 1e-3} for kind in kinds}):
        assert not goes_straight_to_torch(layer, x)
    with chosen_by({kind: {"native": 1e-3, "packed": 2e-3} for kind in kinds}):
        assert goes_straight_to_torch(layer, x)


@pytest.mark.parametrize(
    "layer",
    [
        GroupedConv2d(8, 8, 3, padding=1, groups="log:3"),
        GroupedConv2d(8, 8, 3, padding=1, groups=2, padding_mode="circular"),
        GroupedConv2d(512, 512, 3, padding=1, groups=4),  # one image: its weight is kept in the layout of oneDNN
    ],
    ids=["unequal", "circular", "large weight"],
)
def test_other_layers_go_through_the_operator(layer):
    with chosen_by({}):
        assert not goes_straight_to_torch(layer, torch.randn(1, layer.in_channels, 4, 4))
