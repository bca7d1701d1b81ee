"""The three ops of torch's library: derivatives, tracing, transforms, layouts, bad input."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from gconv import GroupedConv2d, forced_kernel, grouped_conv2d
from gconv.kernels import DIFFERENTIABLE, NAMES, OPS, find, refusal
from gconv.kernels.choose import Choice, choose
from gconv.kernels.geometry import Geometry
from gconv.operator import dispatch, library
from gconv.partition import Partition

KERNELS = ("native", "loop", "merged", "tails", "packed", "nested", "masked")
ops = torch.ops.gconv


def geometry_of(in_sizes, out_sizes, kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1)):
    return Geometry(Partition(tuple(in_sizes)), Partition(tuple(out_sizes)), kernel, stride, padding, dilation)


def split_and_convolve(x, weight, bias, geometry):
    """Independent implementation: one F.conv2d per group in float64, differentiated by torch."""
    biases = [None] * geometry.groups if bias is None else bias.double().split(list(geometry.out_groups.sizes))
    options = {"stride": geometry.stride, "padding": geometry.padding, "dilation": geometry.dilation}
    return torch.cat(
        [
            nn.functional.conv2d(x_g, w_g, b_g, **options)
            for x_g, w_g, b_g in zip(
                x.double().split(list(geometry.in_groups.sizes), 1),
                geometry.group_weights(weight.double()),
                biases,
                strict=True,
            )
        ],
        1,
    )


@st.composite
def geometries(draw):
    groups = draw(st.integers(1, 4))
    sizes = st.lists(st.integers(1, 7), min_size=groups, max_size=groups)
    pair = lambda low, high: (draw(st.integers(low, high)), draw(st.integers(low, high)))  # noqa: E731
    kernel = (draw(st.sampled_from([1, 3, 5])), draw(st.sampled_from([1, 3, 5])))
    equal = draw(st.booleans())
    in_sizes, out_sizes = draw(sizes), draw(sizes)
    if equal:
        in_sizes, out_sizes = in_sizes[:1] * groups, out_sizes[:1] * groups
    return geometry_of(in_sizes, out_sizes, kernel, pair(1, 3), pair(0, 2), pair(1, 2))


def in_layout(x, layout):
    if layout == "strided":  # every other channel of more
        return torch.stack([x, torch.full_like(x, float("nan"))], 2).flatten(1, 2)[:, ::2]
    return x.contiguous(memory_format=getattr(torch, layout))


@pytest.fixture
def poisoned(monkeypatch):
    """Fill new memory with NaN, so that elements which a kernel does not write are visible."""
    empty = torch.empty

    def nan(*args, **kwargs):
        return empty(*args, **kwargs).fill_(float("nan"))

    monkeypatch.setattr(torch, "empty", nan)


@settings(max_examples=60)
@given(
    geometries(),
    st.sampled_from(["contiguous_format", "channels_last", "strided"]),
    st.sampled_from([0, 1, 3]),
    st.booleans(),
    st.sampled_from(["none", "relu"]),
    st.integers(0, 9),
)
def test_every_kernel_computes_all_three_ops_as_float64_does(geometry, layout, batch, with_bias, activation, seed):
    torch.manual_seed(seed)
    x = in_layout(torch.randn(batch, geometry.in_groups.channels, 10, 11), layout)
    weight = torch.randn(geometry.weight_shape)
    bias = torch.randn(geometry.out_groups.channels) if with_bias else None
    x_64, weight_64 = x.double().requires_grad_(), weight.double().requires_grad_()
    plain = split_and_convolve(x_64, weight_64, None, geometry)
    dy = in_layout(torch.randn(plain.shape), layout)
    dx, dw = torch.autograd.grad(plain, [x_64, weight_64], dy.double())
    y = plain.detach() if bias is None else plain.detach() + bias.double().view(1, -1, 1, 1)
    y = y.relu() if activation == "relu" else y
    for name in ("reference", *KERNELS):
        if refusal(name, geometry, x.dtype, "cpu"):
            continue
        kernel = find(name)
        for ours, exact in (
            (kernel.conv2d(x, weight, bias, geometry, activation), y),
            (kernel.input_gradient(dy, weight, geometry, (10, 11)), dx),
            (kernel.weight_gradient(dy, x, geometry), dw),
        ):
            assert ours.shape == exact.shape, name
            scale = max(1.0, exact.abs().max().item()) if exact.numel() else 1.0
            torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("name", KERNELS[1:])
def test_no_kernel_leaves_memory_unwritten(name, poisoned):
    geometry = geometry_of([4, 2, 1], [2, 4, 3], stride=(2, 1))
    kernel, weight = find(name), torch.randn(geometry.weight_shape)
    x = torch.randn(2, 7, 6, 5).contiguous(memory_format=torch.channels_last)
    y = kernel.conv2d(x, weight, None, geometry)
    assert y.isfinite().all()
    assert kernel.input_gradient(y, weight, geometry, (6, 5)).isfinite().all()
    assert kernel.weight_gradient(y, x, geometry).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_widened_16_bit_numbers_are_rounded_once(dtype):
    geometry = geometry_of([8, 4, 4], [8, 4, 4])
    torch.manual_seed(0)
    x, weight = torch.randn(2, 16, 6, 6).to(dtype), torch.randn(geometry.weight_shape).to(dtype)
    dy, kernel = torch.randn(2, 16, 6, 6).to(dtype), find("widened")
    x_64, weight_64 = x.double().requires_grad_(), weight.double().requires_grad_()
    y = split_and_convolve(x_64, weight_64, None, geometry)
    dx, dw = torch.autograd.grad(y, [x_64, weight_64], dy.double())
    for ours, exact in (
        (kernel.conv2d(x, weight, None, geometry), y),
        (kernel.input_gradient(dy, weight, geometry, (6, 6)), dx),
        (kernel.weight_gradient(dy, x, geometry), dw),
    ):
        assert ours.dtype == dtype
        half_a_unit = torch.finfo(dtype).eps / 2  # of rounding, and a little for the sums in fp32
        torch.testing.assert_close(ours.double(), exact.detach(), rtol=1.01 * half_a_unit, atol=2e-5)


@pytest.mark.parametrize(
    ("sizes", "activation"), [((4, 2, 2), "none"), ((4, 4), "relu")], ids=["uneven-none", "uniform-relu"]
)
def test_the_ops_are_registered_as_torch_asks(sizes, activation):
    geometry = geometry_of(sizes, sizes[::-1])
    numbers = library._numbers(geometry)
    x, dy = (torch.randn(2, 8, 5, 6, requires_grad=True) for _ in range(2))
    weight, bias = torch.randn(geometry.weight_shape, requires_grad=True), torch.randn(8, requires_grad=True)
    last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    torch.library.opcheck(ops.conv2d.default, (x, weight, bias, *numbers, activation))
    torch.library.opcheck(ops.conv2d.default, (last, weight, None, *numbers, activation))
    if activation == "none":
        torch.library.opcheck(ops.input_gradient.default, (dy, weight, *numbers, (5, 6)))
        torch.library.opcheck(ops.weight_gradient.default, (dy, last, *numbers))


@pytest.fixture
def separate_kernels(monkeypatch):
    """No kernel computes a whole step: autograd functions join three."""
    monkeypatch.setattr(dispatch, "together", lambda *case: None)
    dispatch._chosen.cache_clear()
    yield
    dispatch._chosen.cache_clear()


def differentiable_ways():
    """The three ops as the library has them, as autograd functions join them, and as torch differentiates them."""
    yield "library", library.OPS
    from gconv.operator.ops import EAGER

    yield "functions", EAGER


@pytest.mark.parametrize(
    ("way", "ours"), differentiable_ways(), ids=lambda value: value if isinstance(value, str) else ""
)
@pytest.mark.parametrize("sizes", [((2, 1), (1, 2)), ((2, 2), (1, 1))], ids=["uneven", "uniform"])
def test_each_op_is_differentiable_twice(way, ours, sizes, separate_kernels):
    geometry = geometry_of(*sizes, kernel=(2, 2), stride=(2, 1))
    make = {"dtype": torch.float64, "requires_grad": True}
    x, weight = torch.randn(1, geometry.in_groups.channels, 3, 2, **make), torch.randn(geometry.weight_shape, **make)
    bias = torch.randn(geometry.out_groups.channels, **make)
    dy = torch.randn(1, geometry.out_groups.channels, *geometry.output_size((3, 2)), **make)
    for call, inputs in (
        (lambda x, w, b: ours.conv2d(x, w, b, geometry, "none"), (x, weight, bias)),
        (lambda x, w, b: ours.conv2d(x, w, b, geometry, "relu"), (x, weight, bias)),
        (lambda dy, w: ours.input_gradient(dy, w, geometry, (3, 2)), (dy, weight)),
        (lambda dy, x: ours.weight_gradient(dy, x, geometry), (dy, x)),
    ):
        assert gradcheck(call, inputs)
        assert gradgradcheck(call, inputs)


def test_ops_with_kernels_of_their_own_are_joined_and_agree_with_torch(separate_kernels, monkeypatch):
    """The gradients of three kernels are those of one that torch differentiates, first and second."""
    layer = GroupedConv2d(16, 16, 3, padding=1, groups="log:3")
    x = torch.randn(2, 16, 6, 6, requires_grad=True)

    def gradients():
        y = grouped_conv2d(x, layer.weight, layer.bias, layer.geometry, "relu")
        first = torch.autograd.grad(y.square().sum(), [x, layer.weight, layer.bias], create_graph=True)
        return *first, *torch.autograd.grad(sum(g.square().sum() for g in first), [x, layer.weight, layer.bias])

    with forced_kernel("loop"):
        assert "_Conv2d" not in type(layer(x).grad_fn).__name__
        expected = gradients()
    names = dict(zip(OPS, ("packed", "nested", "masked"), strict=True))
    monkeypatch.setattr(dispatch, "choose", lambda op, *case: Choice(names[op], "for this test"))
    assert "_Conv2d" in type(layer(x).grad_fn).__name__
    for ours, theirs in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("groups", [4, "log:4"], ids=str)
def test_the_relu_epilogue_is_a_relu_after(groups):
    layer = GroupedConv2d(16, 16, 3, groups=groups)
    x = torch.randn(2, 16, 6, 6, requires_grad=True)
    inside = grouped_conv2d(x, layer.weight, layer.bias, layer.geometry, "relu")
    after = layer(x).relu()
    assert torch.equal(inside, after)
    parameters = [x, layer.weight, layer.bias]
    for one, other in zip(
        torch.autograd.grad(inside.square().sum(), parameters),
        torch.autograd.grad(after.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", sorted(DIFFERENTIABLE - {"native", "reference"}))
def test_results_are_the_same_bits_every_time(name):
    layer = GroupedConv2d(16, 16, 3, padding=1, groups="log:4")
    x = torch.randn(4, 16, 7, 7, requires_grad=True)
    with forced_kernel(name):
        runs = [torch.autograd.grad(layer(x).square().sum(), [x, layer.weight, layer.bias]) for _ in range(2)]
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.randn(2, 6, 5, 5)}, ["(2, 6, 5, 5)", "6 channels", "log:3", "cut 8"]),
        ({"x": torch.randn(2, 8, 2, 9)}, ["(2, 8, 2, 9)", "kernel 3×3", "no output"]),
        ({"x": torch.randn(2, 8, 5, 5).double()}, ["float64", "weight", "float32", "autocast"]),
        ({"x": torch.ones(2, 8, 5, 5, dtype=torch.long)}, ["int64", "floating-point", "bfloat16"]),
        ({"x": torch.randn(8, 5, 5)}, ["(8, 5, 5)", "(N, C, H, W)"]),
        ({"weight": torch.randn(25, 3, 3)}, ["(25, 3, 3)", "(24, 3, 3)"]),
        ({"bias": torch.randn(7)}, ["(7,)", "(8,)"]),
        ({"activation": "gelu"}, ["gelu", "none, relu"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "fake"])
def test_wrong_arguments_are_named_in_one_line(change, words, compiled):
    geometry = geometry_of([4, 2, 2], [4, 2, 2], padding=(0, 0))
    arguments = {"x": torch.randn(2, 8, 5, 5), "weight": torch.randn(24, 3, 3), "bias": torch.randn(8)}
    arguments |= {"activation": "none", **change}
    x, weight, bias, activation = arguments.values()
    with pytest.raises(ValueError) as error:
        if compiled and activation == "none":
            with torch._subclasses.FakeTensorMode() as mode:
                library.conv2d(*map(mode.from_tensor, (x, weight, bias)), geometry, activation)
        else:
            grouped_conv2d(x, weight, bias, geometry, activation)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_kernel_forced_where_it_cannot_run_names_those_that_can():
    layer = GroupedConv2d(8, 8, 3, groups="log:3")
    with forced_kernel("widened"), pytest.raises(ValueError) as error:
        layer(torch.randn(1, 8, 5, 5))
    for word in (
        "widened",
        "8 -> 8 channels in groups log:3",
        "float32",
        "loop, merged, tails, packed, nested, masked can",
    ):
        assert word in str(error.value)
    with pytest.raises(ValueError, match="no kernel 'fast'"), forced_kernel("fast"):
        pass


def test_the_environment_forces_a_kernel():
    """The weight that reaches ATen is dense for the masked kernel; a kernel that there is not is named."""
    code = (
        "import os, torch\n"
        "if child := os.fork():\n"
        "    os.waitpid(child, 0)\n"
        "    os.environ['GCONV_KERNEL'] = 'quick'\n"
        "import gconv\n"
        "real = torch.nn.functional.conv2d\n"
        "torch.nn.functional.conv2d = lambda x, w, *rest: (print(tuple(w.shape)), real(x, w, *rest))[1]\n"
        "gconv.GroupedConv2d(8, 4, 3, groups='2,1,1', in_groups='4,2,2')(torch.randn(1, 8, 4, 4))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], env={"GCONV_KERNEL": "masked"}, capture_output=True, text=True)
    assert run.stdout == "(4, 8, 3, 3)\n"
    assert "GCONV_KERNEL=quick" in run.stderr


def test_every_kernel_has_the_four_functions_of_the_contract():
    for name in NAMES:
        for function in ("conv2d", "input_gradient", "weight_gradient", "refuses"):
            assert callable(getattr(find(name), function)), f"{name}.{function}"


def test_without_triton_every_layer_still_has_kernels():
    geometry = geometry_of([4, 2, 1], [4, 2, 1])
    assert refusal("band", geometry, torch.float32, "cpu") is not None or "triton" in sys.modules
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        for device in ("cpu", "meta"):
            name = choose("conv2d", geometry, dtype, torch.device(device), True, 12).kernel
            assert name != "band"
            assert refusal(name, geometry, dtype, device) is None
