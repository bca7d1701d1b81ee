"""Whole programs around the operator: compiled, exported, mapped, distributed, replayed, counted."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gconv import GroupedConv2d, forced_kernel, grouped_conv2d
from gconv.kernels.geometry import Geometry
from gconv.operator import library
from gconv.partition import Partition

ops = torch.ops.gconv


def geometry_of(in_sizes, out_sizes, kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1)):
    return Geometry(Partition(tuple(in_sizes)), Partition(tuple(out_sizes)), kernel, stride, padding, dilation)


@pytest.mark.parametrize("groups", [2, "log:3", "5,2,1"], ids=str)
def test_a_new_batch_size_compiles_once_more_at_most(groups):
    torch._dynamo.reset()
    layer = GroupedConv2d(8, 8, 3, padding=1, groups=groups)
    compilations = []

    def counting(graph, inputs):
        calls = [node.target for node in graph.graph.nodes if node.op == "call_function"]
        compilations.append([call for call in calls if call is not torch._C._are_functorch_transforms_active])
        return graph.forward

    compiled = torch.compile(layer, fullgraph=True, backend=counting)
    for batch in (2, 3, 5, 7, 11):
        compiled(torch.randn(batch, 8, 6, 6))
    assert len(compilations) <= 2  # for the first size, then for any
    wanted = torch.conv2d if groups == 2 else ops.conv2d.default  # compilers know the convolution of equal groups
    assert compilations == [[wanted]] * len(compilations)


def test_a_compiled_step_has_the_gradients_of_eager_in_channels_last():
    torch._dynamo.reset()
    model = nn.Sequential(
        GroupedConv2d(8, 8, 3, padding=1, groups="log:3"), nn.ReLU(), GroupedConv2d(8, 8, 1, groups=4)
    )
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 5):
        x = torch.randn(batch, 8, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
        y = compiled(x)
        assert y.is_contiguous(memory_format=torch.channels_last)
        wanted = [x, *model.parameters()]
        expected = torch.autograd.grad(model(x).square().sum(), wanted)
        for ours, theirs in zip(torch.autograd.grad(y.square().sum(), wanted), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_autocast_reaches_into_compiled_programs():
    torch._dynamo.reset()
    layer = GroupedConv2d(8, 8, 3, padding=1, groups="log:3")
    x = torch.randn(2, 8, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y = torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
        raw = ops.conv2d(x, layer.weight, layer.bias, *library._numbers(layer.geometry), "none")
    assert y.dtype == raw.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.05)
    y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("sizes", [(4, 2, 2), (4, 4)], ids=["uneven", "uniform"])
def test_vmap_of_the_library_ops_equals_a_loop(sizes):
    """Over images, over weights, over both: weights side by side are one layer with as many times the groups."""
    geometry = geometry_of(sizes, sizes)
    xs, ws = torch.randn(3, 2, 8, 5, 5), torch.randn(3, *geometry.weight_shape)
    dys, bs = torch.randn(3, 2, 8, 5, 5), torch.randn(3, 8)
    calls = {
        "conv2d": (lambda x, w, b: library.conv2d(x, w, b, geometry, "relu"), (xs, ws, bs)),
        "input_gradient": (lambda dy, w: library.input_gradient(dy, w, geometry, (5, 5)), (dys, ws)),
        "weight_gradient": (lambda dy, x: library.weight_gradient(dy, x, geometry), (dys, xs)),
    }
    for name, (call, arguments) in calls.items():
        for mapped in range(1, 2 ** len(arguments)):
            dims = tuple(0 if mapped >> i & 1 else None for i in range(len(arguments)))
            given = [a if dim == 0 else a[0] for a, dim in zip(arguments, dims, strict=True)]
            looped = [call(*(a[k] if d == 0 else a for a, d in zip(given, dims, strict=True))) for k in range(3)]
            together = torch.vmap(call, dims)(*given)
            torch.testing.assert_close(together, torch.stack(looped), rtol=1e-4, atol=1e-4, msg=f"{name} {dims}")


@pytest.mark.filterwarnings("error:There is a performance drop")
@pytest.mark.parametrize("groups", [2, "log:3"], ids=str)
def test_gradients_of_each_example_by_torch_func(groups):
    layer = GroupedConv2d(8, 8, 3, padding=1, groups=groups)
    parameters, xs = dict(layer.named_parameters()), torch.randn(3, 2, 8, 5, 5)

    def loss(parameters, x):
        return torch.func.functional_call(layer, parameters, (x,)).square().sum()

    together = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, xs)
    for k, x in enumerate(xs):
        for name, gradient in torch.func.grad(loss)(parameters, x).items():
            torch.testing.assert_close(together[name][k], gradient, rtol=1e-4, atol=1e-4)


def test_an_index_made_in_inference_mode_serves_training_later():
    layer = GroupedConv2d(10, 10, 3, groups="5,3,2")
    x = torch.randn(1, 10, 4, 4)
    with forced_kernel("packed"):
        with torch.inference_mode():
            layer(x)
        layer(x).sum().backward()
    assert layer.weight.grad.isfinite().all()


def test_flops_of_the_ops_count_connected_channels_alone():
    geometry = geometry_of([4, 2, 2], [6, 1, 1])
    x, weight, dy = torch.randn(3, 8, 5, 5), torch.randn(geometry.weight_shape), torch.randn(3, 8, 5, 5)
    for call in (
        lambda: library.conv2d(x, weight, None, geometry),
        lambda: library.input_gradient(dy, weight, geometry, (5, 5)),
        lambda: library.weight_gradient(dy, x, geometry),
    ):
        with FlopCounterMode(display=False) as counter:
            call()
        assert counter.get_total_flops() == 2 * 3 * 25 * 9 * (4 * 6 + 2 + 2)


@pytest.mark.parametrize("layout", ["contiguous_format", "channels_last"])
@pytest.mark.parametrize("groups", [2, "log:3"], ids=str)
def test_fake_results_have_the_strides_of_real_ones_and_of_torch(groups, layout):
    layer = GroupedConv2d(8, 8, 3, stride=2, groups=groups)
    x = torch.randn(2, 8, 7, 9).contiguous(memory_format=getattr(torch, layout))
    theirs = nn.Conv2d(8, 8, 3, stride=2, groups=2)(x)
    numbers = library._numbers(layer.geometry)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = ops.conv2d(*map(mode.from_tensor, (x, layer.weight, layer.bias)), *numbers, "none")
    real = ops.conv2d(x, layer.weight, layer.bias, *numbers, "none")
    assert layer(x).stride() == real.stride() == fake.stride() == theirs.stride()


def test_it_trains_in_distributed_data_parallel(tmp_path):
    dist = torch.distributed
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        layer = GroupedConv2d(8, 8, 3, padding=1, groups="log:3")
        x = torch.randn(2, 8, 5, 5)
        layer(x).square().sum().backward()
        alone = [p.grad.clone() for p in layer.parameters()]
        layer.zero_grad()
        nn.parallel.DistributedDataParallel(layer)(x).square().sum().backward()
        for p, expected in zip(layer.parameters(), alone, strict=True):
            torch.testing.assert_close(p.grad, expected)
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("groups", [2, 8, "log:4"], ids=str)
def test_a_replayed_cuda_graph_equals_eager(groups, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)  # by itself cuDNN may add in another order
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    layer = GroupedConv2d(64, 64, 3, padding=1, groups=groups, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(8, 64, 16, 16, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    x.requires_grad_()

    def step():
        return torch.autograd.grad(layer(x).square().sum(), [x, layer.weight])

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.normal_()
    graph.replay()
    for ours, theirs in zip(captured, step(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("groups", [2, "log:3"])
def test_transforms_inside_a_compiled_program_are_those_outside(groups):
    layer = GroupedConv2d(8, 8, 3, padding=1, groups=groups)
    weight, x = layer.weight.detach(), torch.randn(3, 8, 5, 5)

    def of_one(weight, image):
        return grouped_conv2d(image[None], weight, layer.bias, layer.geometry, "relu").square().sum()

    per_image = torch.func.vmap(torch.func.grad(of_one), in_dims=(None, 0))
    compiled = torch.compile(per_image, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(weight, x), per_image(weight, x))
    whole = torch.autograd.grad(layer(x).relu().square().sum(), layer.weight)[0]
    torch.testing.assert_close(compiled(weight, x).sum(0), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("groups", [2, "log:3"])
def test_forward_derivatives_agree_with_backward_ones(groups):
    layer = GroupedConv2d(8, 8, 3, padding=1, groups=groups, bias=False).double()
    x, dx = (torch.randn(2, 8, 5, 5, dtype=torch.float64) for _ in range(2))
    y, dy = torch.func.jvp(layer, (x,), (dx,))
    torch.testing.assert_close(dy, layer(dx))  # it is linear
    ddy = torch.randn_like(y)
    (back,) = torch.autograd.grad(layer(x.requires_grad_()), x, ddy)
    torch.testing.assert_close((dy * ddy).sum(), (dx * back).sum())
