"""Blocks give the results of their modules one after the other, and behave as these for hooks, tools and copies."""

import copy
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

from gconv import Block, ChannelShuffle, GroupedConv2d, Partition, block, grouped_conv2d
from gconv.block import run_at, way_of
from gconv.cost import count_cost
from gconv.operator import library
from gconv.wiring import trace_wiring

ops = torch.ops.gconv
NORMS = {
    "usual": lambda: nn.BatchNorm2d(8),
    "no momentum": lambda: nn.BatchNorm2d(8, momentum=None),
    "not affine": lambda: nn.BatchNorm2d(8, affine=False),
    "not tracking": lambda: nn.BatchNorm2d(8, track_running_stats=False),
    "no norm": lambda: None,
}


def modules_of(groups="log:3", norm="usual", bias=True, shuffle=True, relu=True, dtype=torch.float32):
    """Convolution, norm and ReLU, with running statistics in the norm."""
    torch.manual_seed(0)
    normalise = NORMS[norm]()
    for values in () if normalise is None else (*normalise.parameters(), *normalise.buffers()):
        if values.is_floating_point():
            nn.init.uniform_(values, 0.5, 1.5)
    parts = [GroupedConv2d(8, 8, 3, padding=1, groups=groups, bias=bias), normalise, nn.ReLU(inplace=True)]
    parts = [part for part in parts[: 3 if relu else 2] if part is not None]
    parts += [ChannelShuffle(Partition.of(groups, 8))] if shuffle else []
    return nn.Sequential(*parts).to(dtype)


def twins(**kinds):
    """The modules one after the other, and a Block of copies of them."""
    plain = modules_of(**kinds)
    return plain, Block(*copy.deepcopy(plain).children())


def images(batch=4, layout=torch.channels_last, seed=1):
    torch.manual_seed(seed)
    return torch.randn(batch, 8, 6, 5).contiguous(memory_format=layout)


def assert_alike_in_training(plain, ours, batches=(4, 3, 5), call=None, tolerance=1e-4):
    for seed, batch in enumerate(batches):
        x, again = (images(batch, seed=seed).requires_grad_() for _ in range(2))
        y, z = plain(x), (call or ours)(again)
        torch.testing.assert_close(z, y, rtol=tolerance, atol=tolerance)
        dy = torch.randn_like(y)
        wanted = torch.autograd.grad(y, [x, *plain.parameters()], dy)
        for result, gradient in zip(torch.autograd.grad(z, [again, *ours.parameters()], dy), wanted, strict=True):
            torch.testing.assert_close(result, gradient, rtol=tolerance, atol=10 * tolerance)
        for (name, result), value in zip(ours.named_buffers(), plain.buffers(), strict=True):
            torch.testing.assert_close(result, value, rtol=tolerance, atol=tolerance, msg=name)


@pytest.fixture
def counting(monkeypatch):
    """Treat the CPU as a device whose kernels have epilogues."""
    monkeypatch.setattr(block, "EPILOGUE_DEVICES", ("cpu",))
    monkeypatch.setattr(block, "_has_epilogue", lambda x, conv: True)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("norm", NORMS)
def test_training_in_eager_mode_is_that_of_the_modules_to_the_bit(norm):
    assert_alike_in_training(*twins(norm=norm), tolerance=0)


def stacked(groups):
    """One network with a block of every kind of norm."""
    plain = nn.Sequential(*(modules_of(groups, norm, shuffle=norm == "usual") for norm in NORMS))
    return plain, nn.Sequential(*(Block(*copy.deepcopy(part).children()) for part in plain))


@pytest.mark.parametrize("counted", [False, True], ids=["by ATen", "counted"])
def test_compiled_training_is_that_of_the_modules(counted, request):
    torch._dynamo.reset()
    if counted:
        request.getfixturevalue("counting")
    plain, ours = stacked("log:3")
    assert way_of_compiled(ours[0]) == ("counted" if counted else "by ATen")
    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend="eager")
    assert_alike_in_training(plain, ours, (4, 3), compiled, 1e-3)


@pytest.mark.parametrize("counted", [False, True], ids=["by ATen", "counted"])
def test_training_compiled_ahead_of_time_is_that_of_the_modules(counted, request):
    torch._dynamo.reset()
    if counted:
        request.getfixturevalue("counting")
    plain, ours = twins(groups="log:3")
    assert_alike_in_training(plain, ours, (4,), torch.compile(ours, fullgraph=True, backend="aot_eager"))


def way_of_compiled(ours):
    ways = []

    def look(x):
        ways.append(way_of(x, *run_at(list(ours), 0)))
        return x + 1

    torch.compile(look, backend="eager")(images())
    return ways[0]


@pytest.mark.parametrize(("counted", "op"), [(False, ops.normalize.default), (True, ops.conv2d_statistics.default)])
def test_a_new_batch_size_compiles_once_more_at_most_and_keeps_the_op(counted, op, request):
    torch._dynamo.reset()
    if counted:
        request.getfixturevalue("counting")
    _, ours = twins()
    graphs = []

    def counting(graph, inputs):
        graphs.append([node.target for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    compiled = torch.compile(ours, fullgraph=True, backend=counting)
    for batch in (2, 3, 5, 7, 11):
        compiled(images(batch))
    assert len(graphs) <= 2
    assert all(op in calls for calls in graphs)


@settings(max_examples=20)
@given(
    st.sampled_from([1, 2, 8, "log:3", "5,2,1"]),
    st.sampled_from(list(NORMS)),
    st.booleans(),
    st.booleans(),
    st.sampled_from([torch.contiguous_format, torch.channels_last]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.sampled_from([0, 1, 3]),
)
def test_folded_evaluation_is_as_exact_as_the_modules(groups, norm, bias, relu, layout, dtype, batch):
    plain = modules_of(groups, norm, bias, relu=relu, dtype=dtype).eval()
    ours = Block(*plain.children()).eval()
    x = images(batch, layout).to(dtype)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(block, "MIN_OUTPUTS_TO_FOLD", 0)
        patch.setattr(block, "_worth_folding", lambda *run: True)
        run = run_at(list(ours), 0)
        if run is not None:
            assert way_of(x, *run) == ("modules" if norm == "not tracking" else "folded")
        exact, theirs, result = copy.deepcopy(plain).double()(x.double()), plain(x), ours(x)
    assert result.dtype == theirs.dtype and result.shape == theirs.shape and result.stride() == theirs.stride()
    if result.numel():
        error, yardstick = ((y.double() - exact).abs().max().item() for y in (result, theirs))
        assert error <= 2 * yardstick + 16 * torch.finfo(dtype).eps * exact.abs().max().item()


@pytest.mark.parametrize("padding", [1, "same"], ids=str)
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_convolutions_of_torch_are_folded_too(padding, compiled, monkeypatch):
    monkeypatch.setattr(block, "_worth_folding", lambda *run: True)
    mode = "zeros" if padding == 1 else "reflect"
    plain = nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=padding, padding_mode=mode, groups=2), nn.BatchNorm2d(8), nn.ReLU()
    )
    plain(images())
    ours = Block(*plain.children()).eval()
    with torch.no_grad():
        assert way_of(images(), *run_at(list(ours), 0)) == "folded"
        call = torch.compile(ours, fullgraph=True, backend="eager") if compiled else ours
        torch.testing.assert_close(call(images()), plain.eval()(images()), rtol=1e-4, atol=1e-5)


def test_folding_follows_the_parameters_at_every_call(monkeypatch):
    monkeypatch.setattr(block, "_worth_folding", lambda *run: True)
    plain = modules_of().eval()
    ours = Block(*plain.children()).eval()
    with torch.no_grad():
        for change in (lambda: None, lambda: plain[0].weight.data.mul_(2), lambda: plain[1].running_mean.add_(1)):
            change()
            torch.testing.assert_close(ours(images()), plain(images()), rtol=1e-4, atol=1e-4)


def test_small_evaluations_and_those_that_are_differentiated_are_left_to_the_modules():
    ours = Block(*modules_of().children()).eval()
    run = run_at(list(ours), 0)
    with torch.no_grad():
        assert way_of(images(1), *run) == "modules"
        assert way_of(torch.empty(512, 8, 32, 32), *run) == "folded"
    assert way_of(torch.empty(512, 8, 32, 32), *run) == "modules"
    ours.requires_grad_(False)
    assert way_of(torch.empty(512, 8, 32, 32), *run) == "folded"
    assert way_of(torch.empty(512, 8, 32, 32, requires_grad=True), *run) == "modules"


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_autocast_reaches_into_blocks(mode, monkeypatch):
    monkeypatch.setattr(block, "_worth_folding", lambda *run: True)
    torch._dynamo.reset()
    plain, ours = twins()
    plain.train(mode == "train"), ours.train(mode == "train")
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(mode == "train"):
        expected, compiled = plain(images()), torch.compile(ours, fullgraph=True, backend="eager")(images())
        result = ours(images())
    assert result.dtype == expected.dtype == compiled.dtype
    for y in (result, compiled):
        torch.testing.assert_close(y.float(), expected.float(), rtol=0.05, atol=0.05)


def test_hooks_still_run_and_tools_find_the_modules():
    plain, ours = twins()
    for compute in (plain, ours):
        compute.eval()
    names = OrderedDict((name, type(module)) for name, module in plain.named_modules() if name)
    assert names == OrderedDict((name, type(module)) for name, module in ours.named_modules() if name)
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert [layer.macs for layer in count_cost(ours, (8, 6, 5)).layers] == [
        layer.macs for layer in count_cost(plain, (8, 6, 5)).layers
    ]
    assert trace_wiring(ours, (8, 6, 5)) == trace_wiring(plain, (8, 6, 5))
    seen: dict[str, list] = {"plain": [], "ours": []}
    for which, model in (("plain", plain), ("ours", ours)):
        for module in list(model)[:3]:
            module.register_forward_hook(lambda m, x, y, which=which: seen[which].append(y.clone()))
    with torch.no_grad():
        x = images(700)
        assert torch.equal(ours(x), plain(x))
    assert len(seen["ours"]) == 3
    assert all(torch.equal(a, b) for a, b in zip(seen["ours"], seen["plain"], strict=True))


@pytest.mark.parametrize("odd", ["SyncBatchNorm", "parametrised", "own forward", "backward hook"])
def test_modules_that_are_not_plain_are_left_alone(odd):
    conv, norm, relu = list(modules_of(shuffle=False))
    if odd == "SyncBatchNorm":
        norm = nn.SyncBatchNorm(8)
        assert run_at([conv, norm, relu], 0) is None
    elif odd == "parametrised":
        torch.nn.utils.parametrizations.weight_norm(conv)
    elif odd == "own forward":
        conv.forward = lambda x: x
    else:
        conv.register_full_backward_hook(lambda *_: None)
    with torch.no_grad():
        assert way_of(torch.empty(512, 8, 32, 32), conv, norm.eval(), relu) == "modules"


def test_torch_fx_and_export_find_the_modules():
    dense = Block(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
    nodes = torch.fx.symbolic_trace(dense).graph.nodes
    assert [node.target for node in nodes if node.op == "call_module"] == ["0", "1", "2"]
    ours = Block(*modules_of().children()).eval()
    with torch.no_grad():
        program = torch.export.export(ours, (images(),))
        torch.testing.assert_close(program.module()(images()), ours(images()))
    assert any("batch_norm" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("counted", [False, True], ids=["by ATen", "counted"])
def test_an_empty_batch_and_a_single_value_give_what_the_modules_give(compiled, counted, request):
    torch._dynamo.reset()
    if counted:
        request.getfixturevalue("counting")
    plain, ours = twins(shuffle=False)
    call = torch.compile(ours, backend="eager") if compiled else ours
    assert call(torch.empty(0, 8, 6, 6)).shape == plain(torch.empty(0, 8, 6, 6)).shape
    for result, value in zip(ours.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(result, value)
    with pytest.raises(Exception, match="more than 1 value per channel"):
        call(torch.randn(1, 8, 1, 1))


def test_the_ops_are_registered_as_torch_asks():
    layer = GroupedConv2d(8, 8, 3, groups="log:3")
    numbers = library._numbers(layer.geometry)
    x = images().requires_grad_()
    torch.library.opcheck(ops.conv2d_statistics.default, (x, layer.weight, layer.bias, *numbers))
    weight, bias = (torch.randn(8, requires_grad=True) for _ in range(2))
    torch.library.opcheck(ops.normalize.default, (x, weight, bias, 1e-5, True))
    z, mean, _, reciprocal = ops.normalize(x, weight, bias, 1e-5, True)
    inputs = (torch.randn_like(x), x, z, weight, mean, reciprocal, 1e-5)
    torch.library.opcheck(ops.normalize_backward.default, tuple(getattr(t, "detach", lambda t=t: t)() for t in inputs))


def test_statistics_and_normalisation_are_differentiable_twice():
    make = {"dtype": torch.float64, "requires_grad": True}
    layer = GroupedConv2d(3, 3, (2, 1), groups="2,1", dtype=torch.float64)
    x, gamma, beta = torch.randn(2, 3, 2, 2, **make), torch.rand(3, **make), torch.randn(3, **make)
    call = lambda x, w, b: library.conv2d_statistics(x, w, b, layer.geometry)  # noqa: E731
    assert gradcheck(call, (x, layer.weight, layer.bias))
    assert gradgradcheck(call, (x, layer.weight, layer.bias))
    normalise = lambda *given: ops.normalize(*given, 1e-5, True)[0]  # noqa: E731
    assert gradcheck(normalise, (x, gamma, beta))
    assert gradgradcheck(normalise, (x, gamma, beta))


def test_statistics_and_normalisation_can_be_mapped():
    layer = GroupedConv2d(8, 8, 3, groups="log:3")
    xs, ws, bs = torch.randn(3, 2, 8, 5, 5), torch.randn(3, *layer.weight.shape), torch.randn(3, 8)
    calls = {
        "statistics": (lambda x, w, b: library.conv2d_statistics(x, w, b, layer.geometry), (xs, ws, bs)),
        "normalise": (lambda x, w, b: ops.normalize(x, w, b, 1e-5, True), (xs, bs, bs + 1)),
        "backward": (lambda x, w, b: ops.normalize_backward(x, x, x.relu(), w, b, w, 1e-5), (xs, bs, bs + 1)),
    }
    for call, arguments in calls.values():
        for dims in ((0, 0, 0), (0, None, None), (None, 0, None)):
            given = [a if dim == 0 else a[0] for a, dim in zip(arguments, dims, strict=True)]
            single = [[a[k] if d == 0 else a for a, d in zip(given, dims, strict=True)] for k in range(3)]
            looped = [torch.stack(parts) for parts in zip(*(call(*one) for one in single), strict=True)]
            torch.testing.assert_close(torch.vmap(call, dims)(*given), tuple(looped), rtol=1e-4, atol=1e-4)


def test_statistics_survive_a_mean_far_from_zero():
    layer = GroupedConv2d(8, 8, 1, groups="log:3")
    with torch.no_grad():
        layer.bias.fill_(1e4)
        y, mean, var = library.conv2d_statistics(images(), layer.weight, layer.bias, layer.geometry)
    expected, center = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(mean.double(), center, rtol=1e-6, atol=0)
    torch.testing.assert_close(var.double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("groups", [2, "log:3"], ids=str)
def test_a_relu_inside_one_dnn_is_a_relu_after_for_modes_and_tangents_too(groups):
    layer = GroupedConv2d(8, 8, 3, groups=groups).requires_grad_(False)
    x, tangent = images(), images(seed=2)

    def relu(x):
        return grouped_conv2d(x, layer.weight, layer.bias, layer.geometry, "relu")

    assert torch.equal(relu(x), layer(x).relu())
    with FlopCounterMode(display=False) as counter:
        relu(x)
    with FlopCounterMode(display=False) as expected:
        layer(x)
    assert counter.get_total_flops() == expected.get_total_flops() > 0
    with forward_ad.dual_level():
        result = forward_ad.unpack_dual(relu(forward_ad.make_dual(x, tangent))).tangent
        expected = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, tangent)).relu()).tangent
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(torch.vmap(relu)(x.unsqueeze(1)), relu(x).unsqueeze(1))
