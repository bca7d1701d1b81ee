"""Layers of this package in the programs that torch exports and traces, against nn.Conv2d and loops in float64."""

import copy
import io
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from gconv import (
    Block,
    ChannelPermutation,
    ChannelShuffle,
    GroupedConv2d,
    Partition,
    channel_shuffle,
    forced_kernel,
    fuse,
    grouped_conv2d,
)
from gconv.kernels import NAMES, masked
from gconv.operator import dispatch

GROUPS = [4, "log:3", "5,2,1"]
EQUAL_AND_UNEQUAL = [4, pytest.param("log:3", marks=pytest.mark.slow), "5,2,1"]  # where each takes a second


def by_loop(layer, x):
    """Compute the layer by one F.conv2d per group in float64."""
    parts, at = [], 0
    inputs = x.double().split(list(layer.geometry.in_groups.sizes), 1)
    weights = [w.double() for w in layer.group_weights()]
    for part, weight in zip(inputs, weights, strict=True):
        bias = layer.bias[at : at + len(weight)].double()
        parts.append(F.conv2d(part, weight, bias, layer.stride, layer.padding, layer.dilation))
        at += len(weight)
    return torch.cat(parts, 1)


def operators(program):
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "traced"])
@pytest.mark.parametrize("groups", EQUAL_AND_UNEQUAL, ids=str)
def test_an_exported_program_has_operators_of_torch_alone_and_takes_any_size(groups, strict):
    torch._dynamo.reset()
    model = nn.Sequential(GroupedConv2d(8, 8, 3, stride=2, padding=1, groups=groups)).eval()
    free = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=3), 3: torch.export.Dim("w", min=3)}
    x = torch.randn(2, 8, 7, 9)
    program = torch.export.export(model, (x,), dynamic_shapes=(free,), strict=strict)
    for it in (program, program.run_decompositions()):
        assert all(name.startswith("aten.") for name in operators(it))
        for size in ((2, 8, 7, 9), (5, 8, 20, 11)):
            x = torch.randn(size)
            torch.testing.assert_close(it.module()(x).double(), by_loop(model[0], x), rtol=1e-5, atol=1e-5)
    assert "aten.convolution.default" in operators(program.run_decompositions())


@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
@pytest.mark.parametrize("train", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("groups", GROUPS, ids=str)
def test_a_program_of_the_older_tracer_has_operators_of_torch_alone_and_takes_any_size(groups, train):
    first = GroupedConv2d(8, 8, 3, stride=2, padding=1, groups=groups).train(train)
    second, norm = GroupedConv2d(8, 8, 1, groups=groups), nn.BatchNorm2d(8)
    model = nn.Sequential(first, Block(second, norm, nn.ReLU()).eval())
    program = torch.jit.trace(model, torch.randn(1, 8, 7, 9))  # traces again, without gradients, and compares
    assert {node.kind() for node in program.inlined_graph.nodes()} <= {
        *("aten::_convolution", "aten::batch_norm", "aten::relu", "aten::relu_", "aten::cat"),
        *("aten::narrow", "aten::view", "prim::Constant", "prim::GetAttr", "prim::ListConstruct"),
    }
    for size in ((1, 8, 7, 9), (5, 8, 20, 11)):
        x = torch.randn(size)
        wanted = F.relu(copy.deepcopy(norm).double()(by_loop(second, by_loop(first, x))))
        torch.testing.assert_close(program(x).double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", GROUPS, ids=str)
def test_a_program_of_fx_takes_inputs_with_and_without_a_batch(groups):
    layer = GroupedConv2d(8, 8, 3, groups=groups)
    program, x = fx.symbolic_trace(layer), torch.randn(2, 8, 6, 7)
    wanted = by_loop(layer, x)
    torch.testing.assert_close(program(x).double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(program(x[0]).double(), wanted[0], rtol=1e-5, atol=1e-5)


def loaded(program):
    """Save and load a program."""
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


@pytest.mark.parametrize("kernel", [name for name in NAMES if name != "band"])
def test_an_exported_program_is_the_same_whichever_of_torchs_kernels_is_forced(kernel):
    for groups, convolutions in ((4, 1), ("5,2,1", 3)):
        layer, x = GroupedConv2d(8, 8, 3, groups=groups).eval(), torch.randn(2, 8, 7, 9)
        with forced_kernel(kernel):
            program = torch.export.export(layer, (x,))
        targets = [str(node.target) for node in program.graph.nodes]
        assert targets.count("aten.conv2d.default") == convolutions and not program.constants
        torch.testing.assert_close(program.module()(x).double(), by_loop(layer, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "traced"])
@pytest.mark.parametrize("groups", [4, "log:3"], ids=str)
def test_under_a_forced_band_kernel_a_program_has_our_operator_which_chooses_its_kernel_where_it_runs(groups, strict):
    torch._dynamo.reset()
    layer, x = GroupedConv2d(8, 8, 3, padding=1, groups=groups).eval(), torch.randn(2, 8, 7, 9)
    with forced_kernel("band"):  # which cannot run here
        program = torch.export.export(layer, (x,), strict=strict)
    program = loaded(program)
    assert operators(program) == {"gconv.conv2d.default"} and not program.constants
    torch.testing.assert_close(program.module()(x).double(), by_loop(layer, x), rtol=1e-5, atol=1e-5)
    with forced_kernel("masked"), mock.patch.object(masked, "conv2d", side_effect=masked.conv2d) as called:
        dispatch.forget()
        program.module()(x)
    dispatch.forget()
    assert called.call_count == 1


@pytest.mark.parametrize("groups", GROUPS, ids=str)
def test_a_compiled_program_is_compiled_once_for_all_sizes(groups):
    torch._dynamo.reset()
    layer, compilations = GroupedConv2d(8, 8, 3, stride=2, padding=1, groups=groups), []

    def counting(graph, inputs):
        compilations.append(graph)
        return graph.forward

    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counting)
    for size in ((2, 8, 7, 9), (5, 8, 20, 11), (3, 8, 6, 6), (4, 8, 9, 5)):
        x = torch.randn(size)
        torch.testing.assert_close(compiled(x), layer(x))
    assert len(compilations) == 1


@pytest.mark.parametrize("groups", GROUPS, ids=str)
@pytest.mark.parametrize("layout", ["contiguous_format", "channels_last"])
def test_symbolic_traces_leave_nothing_that_later_calls_meet(groups, layout):
    from torch.fx.experimental.proxy_tensor import make_fx

    layer = GroupedConv2d(8, 8, 3, padding=1, groups=groups)
    x = torch.randn(2, 8, 7, 9).contiguous(memory_format=getattr(torch, layout))
    arguments = x, layer.weight.detach(), layer.bias.detach()
    for _ in range(2):
        traced = make_fx(lambda x, w, b: grouped_conv2d(x, w, b, layer.geometry), tracing_mode="symbolic")(*arguments)
    torch.testing.assert_close(traced(*arguments).double(), by_loop(layer, x), rtol=1e-5, atol=1e-5)
    assert layer(x[:0]).shape == (0, 8, 7, 9)


def network(groups):
    cut = Partition.of(groups, 8)
    shuffle = ChannelShuffle(cut)
    block = Block(GroupedConv2d(8, 8, 3, padding=1, groups=groups), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(GroupedConv2d(8, 8, 1, groups=groups), shuffle, block, ChannelPermutation(range(7, -1, -1)))


@pytest.mark.parametrize("groups", GROUPS, ids=str)
def test_torch_fx_traces_every_layer(groups):
    model = network(groups).eval()
    x = torch.randn(2, 8, 7, 9)
    traced = fx.symbolic_trace(model)
    torch.testing.assert_close(traced(x), model(x))
    ShapeProp(traced).propagate(x)
    leaves = {node.target: node.meta["tensor_meta"].shape for node in traced.graph.nodes if node.op == "call_module"}
    assert {"0", "1", "2.0", "2.1", "2.2"} <= set(leaves)
    assert set(map(tuple, leaves.values())) == {(2, 8, 7, 9)}


@pytest.mark.parametrize("groups", GROUPS, ids=str)
def test_torch_fx_traces_a_layer_by_itself_and_a_function(groups):
    layer = GroupedConv2d(8, 8, 3, padding="same", groups=groups)
    x = torch.randn(2, 8, 7, 9)
    torch.testing.assert_close(fx.symbolic_trace(layer)(x), layer(x))
    shuffle = ChannelShuffle(Partition.of(groups, 8))
    torch.testing.assert_close(fx.symbolic_trace(shuffle)(x), shuffle(x))

    def shuffled(x):
        return channel_shuffle(x, Partition.of(groups, 8)) + channel_shuffle(x, groups)

    torch.testing.assert_close(fx.symbolic_trace(shuffled)(x), 2 * shuffle(x))


def test_torch_fuses_an_equal_layer_with_its_norm():
    torch.manual_seed(1)
    conv, norm = GroupedConv2d(8, 8, 3, groups=4).eval(), nn.BatchNorm2d(8).eval()
    nn.init.uniform_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 1, 2)
    x = torch.randn(2, 8, 7, 9)
    fused = torch.nn.utils.fuse_conv_bn_eval(conv, norm)
    torch.testing.assert_close(fused(x), norm(conv(x)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [4, "log:3"], ids=str)
def test_a_fused_model_is_traced_too(groups):
    model = nn.Sequential(GroupedConv2d(8, 8, 3, groups=groups), nn.BatchNorm2d(8), nn.ReLU()).eval()
    fused = fuse(copy.deepcopy(model)).model
    x = torch.randn(2, 8, 7, 9)
    torch.testing.assert_close(fx.symbolic_trace(fused)(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("groups", EQUAL_AND_UNEQUAL, ids=str)
def test_onnx_runtime_agrees_with_the_layer(groups):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    layer = GroupedConv2d(8, 8, 3, padding=1, groups=groups).eval()
    x = torch.randn(2, 8, 7, 9)
    program = torch.onnx.export(layer, (x,), None, dynamo=True, verbose=False)
    kinds = [node.op_type for node in program.model.graph]
    assert kinds.count("Conv") == (1 if groups == 4 else layer.groups)
    session = runtime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y).double(), by_loop(layer, x), rtol=1e-6, atol=1e-6)


def test_torch_jit_scripts_equal_groups_and_names_export_for_the_others():
    model = nn.Sequential(Block(GroupedConv2d(8, 8, 3, groups=4), nn.BatchNorm2d(8), nn.ReLU())).eval()
    x = torch.randn(2, 8, 7, 9)
    torch.testing.assert_close(torch.jit.script(copy.deepcopy(model))(x), model(x), rtol=1e-5, atol=1e-5)
    for parameter in model.parameters():
        assert parameter.requires_grad
    with pytest.raises(TypeError, match="export"):
        torch.jit.script(GroupedConv2d(8, 8, 3, groups="log:3"))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_quantised_tensor_is_refused_with_the_way_that_works():
    x = torch.quantize_per_tensor(torch.randn(1, 8, 5, 5), 0.1, 0, torch.qint8)
    for groups in GROUPS:
        with pytest.raises(RuntimeError, match="export"):
            GroupedConv2d(8, 8, 3, groups=groups)(x)
