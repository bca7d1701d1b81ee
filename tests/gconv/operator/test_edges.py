"""Complex numbers, forward-mode derivatives, autocast, threads, distributed tensors and meta devices."""

import threading
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from gconv import GroupedConv2d, forced_kernel
from gconv.kernels import CANDIDATES
from gconv.operator import autocast, dispatch, library

GROUPS = [2, "log:3", "5,2,1"]


def by_loop(layer, x):
    """Compute the layer by one convolution of torch per group."""
    parts = []
    inputs, biases = (
        x.split(list(layer.geometry.in_groups.sizes), 1),
        layer.bias.split(list(layer.geometry.out_groups.sizes)),
    )
    for part, weight, bias in zip(inputs, layer.group_weights(), biases, strict=True):
        parts.append(nn.functional.conv2d(part, weight, bias, layer.stride, layer.padding))
    return torch.cat(parts, 1)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("groups", GROUPS, ids=str)
def test_complex_layers_compute_and_learn_as_torch_does(groups, compiled):
    torch._dynamo.reset()
    layer = GroupedConv2d(8, 8, 3, padding=1, groups=groups, dtype=torch.complex128)
    run = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
    x = torch.randn(2, 8, 5, 6, dtype=torch.complex128, requires_grad=True)
    up = torch.randn(2, 8, 5, 6, dtype=torch.complex128)
    ours, theirs = run(x), by_loop(layer, x)
    torch.testing.assert_close(ours, theirs)
    wanted = [x, layer.weight, layer.bias]
    for one, other in zip(torch.autograd.grad(ours, wanted, up), torch.autograd.grad(theirs, wanted, up), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_library_ops_have_all_derivatives(dtype):
    geometry = GroupedConv2d(3, 3, 2, padding=1, stride=2, groups="1,2", in_groups="2,1").geometry
    x = torch.randn(1, 3, 3, 2, dtype=dtype, requires_grad=True)
    weight = torch.randn(geometry.weight_shape, dtype=dtype, requires_grad=True)
    bias = torch.randn(3, dtype=dtype, requires_grad=True)
    dy = torch.randn(1, 3, 2, 2, dtype=dtype, requires_grad=True)
    calls = [
        (lambda x, w, b: library.conv2d(x, w, b, geometry), (x, weight, bias)),
        (lambda dy, w: library.input_gradient(dy, w, geometry, (3, 2)), (dy, weight)),
        (lambda dy, x: library.weight_gradient(dy, x, geometry), (dy, x)),
    ]
    if dtype == torch.float64:
        calls += [(lambda x, w, b: library.conv2d_statistics(x, w, b, geometry), (x, weight, bias))]
        calls += [(lambda x, w, b: library.conv2d(x, w, b, geometry, "relu"), (x, weight, bias))]
    for call, given in calls:
        assert gradcheck(call, given, check_forward_ad=True)
        assert gradgradcheck(call, given)


def test_forward_derivatives_of_a_library_op_under_torch_func():
    geometry = GroupedConv2d(8, 8, 3, padding=1, groups="log:3").geometry
    x, dx = torch.randn(2, 2, 8, 5, 5).unbind()
    w, dw = torch.randn(2, *geometry.weight_shape).unbind()
    _, moved = torch.func.jvp(lambda x, w: library.conv2d(x, w, None, geometry), (x, w), (dx, dw))
    expected = library.conv2d(dx, w, None, geometry) + library.conv2d(x, dw, None, geometry)
    torch.testing.assert_close(moved, expected)
    with forward_ad.dual_level():
        y = library.conv2d(forward_ad.make_dual(x, dx), w, None, geometry)
        torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, library.conv2d(dx, w, None, geometry))


@pytest.mark.parametrize("groups", GROUPS, ids=str)
def test_autocast_leaves_float64_alone_in_eager_and_compiled(groups):
    torch._dynamo.reset()
    layer = GroupedConv2d(8, 8, 3, padding=1, groups=groups).double()
    x = torch.randn(2, 8, 5, 6, dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        theirs = nn.Conv2d(8, 8, 3).double()(x)
        for y in (layer(x), compiled(x), library.conv2d(x, layer.weight, layer.bias, layer.geometry)):
            assert y.dtype == theirs.dtype == torch.float64
            torch.testing.assert_close(y, by_loop(layer, x))


class Casts(TorchDispatchMode):
    """Casts of tensors, by shape."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default:
            self.count[tuple(args[0].shape)] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def bf16_is_computed(monkeypatch):
    """Pretend that the CPU computes in bf16: else the operator casts to fp32 inside."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    dispatch.forget()
    yield
    dispatch.forget()


def casts(layer, mode, x):
    """Return the number of casts of two calls in one block of autocast, then of one call in another."""
    with Casts() as counted, torch.set_grad_enabled(mode == "step"):
        for calls in (2, 1):
            with torch.autocast("cpu", torch.bfloat16):
                results = [layer(x).float().sum() for _ in range(calls)]
            if mode == "step":
                sum(results).backward()
    return sum(counted.count.values())


@pytest.mark.usefixtures("bf16_is_computed")
@pytest.mark.parametrize("mode", ["forward", "step"])
@pytest.mark.parametrize(
    ("kernel", "groups"),
    [("native", 4), (None, 4), (None, "5,2,1")]
    + [(name, "5,2,1") for name in CANDIDATES if name not in ("native", "widened", "band")],
    ids=str,
)
def test_autocast_casts_as_often_as_for_nn_conv2d(kernel, groups, mode):
    x = torch.randn(2, 8, 6, 6)
    with forced_kernel(kernel) if kernel else nullcontext():
        assert casts(GroupedConv2d(8, 8, 3, groups=groups), mode, x) == casts(nn.Conv2d(8, 8, 3), mode, x)


@pytest.mark.usefixtures("bf16_is_computed")
@pytest.mark.parametrize("groups", GROUPS, ids=str)
def test_a_cast_is_kept_while_the_parameter_is_unchanged_and_the_block_lasts(groups):
    layer, x = GroupedConv2d(8, 8, 3, groups=groups), torch.randn(2, 8, 6, 6)

    def cast_again(change, **options):
        with Casts() as counted, torch.autocast("cpu", torch.bfloat16, **options):
            first = layer(x)
            change()
            second = layer(x)
        return counted.count[layer.weight.shape] == 2, torch.equal(first, second)

    with torch.no_grad():
        assert cast_again(lambda: None) == (False, True)
        assert cast_again(lambda: None, cache_enabled=False) == (True, True)
        assert cast_again(lambda: layer.weight.mul_(2)) == (True, False)
        assert cast_again(lambda: setattr(layer.weight, "data", layer.weight * 2)) == (True, False)
    assert not autocast._casts, "freed with the block"


@pytest.mark.usefixtures("bf16_is_computed")
@pytest.mark.parametrize("first", [torch.no_grad, torch.inference_mode])
def test_a_cast_without_gradients_is_not_taken_for_training(first):
    layer, x = GroupedConv2d(8, 8, 3, groups="log:3"), torch.randn(2, 8, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        with first():
            expected = layer(x)
        result = layer(x)
        with first():
            assert torch.equal(layer(x), expected)
    result.float().sum().backward()
    assert torch.equal(result, expected) and layer.weight.grad is not None


@pytest.mark.parametrize("reentrant", [False, True], ids=["hooks", "reentrant"])
@pytest.mark.parametrize("groups", GROUPS, ids=str)
def test_a_checkpoint_computes_again_in_a_block_of_its_own(groups, reentrant):
    layer, x = GroupedConv2d(8, 8, 3, groups=groups), torch.randn(2, 8, 6, 6, requires_grad=True)

    def gradient(again):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x).float().square() + again(x).float().square()
        y.sum().backward()
        return layer.weight.grad.clone()

    ours = gradient(lambda x: checkpoint(layer, x, use_reentrant=reentrant))
    torch.testing.assert_close(ours, gradient(layer), rtol=0.02, atol=0.02)


def test_a_trace_leaves_no_cast_to_the_calls_after_it():
    layer, x = GroupedConv2d(8, 8, 3, groups="log:3"), torch.randn(2, 8, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        make_fx(layer, tracing_mode="fake", _allow_non_fake_inputs=True)(x)
        assert type(layer(x)) is torch.Tensor


def test_a_forced_kernel_is_forced_on_its_own_thread_alone():
    layer = GroupedConv2d(8, 8, 3, groups="log:3")
    seen, entered, leave = [], threading.Event(), threading.Event()

    def other():
        with forced_kernel("masked"):
            entered.set()
            leave.wait(30)
            seen.append(dispatch.forced_name())

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(30)
    assert dispatch.forced_name() is None
    with forced_kernel("packed"):
        leave.set()
        thread.join()
        assert dispatch.forced_name() == "packed"
        layer(torch.randn(1, 8, 5, 5))
    assert seen == ["masked"] and dispatch.forced_name() is None


def test_derivatives_in_another_thread_use_the_kernel_that_was_forced(monkeypatch):
    layer = GroupedConv2d(8, 8, 3, groups="log:3")
    used = []
    masked = dispatch.find("masked")
    weight_gradient = masked.weight_gradient

    def noting(*given):
        used.append("masked")
        return weight_gradient(*given)

    monkeypatch.setattr(masked, "weight_gradient", noting)
    dispatch._named.cache_clear()
    try:
        with forced_kernel("masked"):
            y = layer(torch.randn(1, 8, 5, 5)).sum()
        thread = threading.Thread(target=y.backward)
        thread.start()
        thread.join()
    finally:
        monkeypatch.undo()
        dispatch._named.cache_clear()
    assert used == ["masked"]


@pytest.fixture
def mesh(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh

    dist = torch.distributed
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("groups", [2, "log:3"], ids=str)
def test_fully_sharded_layers_made_on_the_meta_device_are_initialised(groups, mesh):
    from torch.distributed.fsdp import fully_shard

    with torch.device("meta"):
        layer = GroupedConv2d(512, 256, 3, groups=groups)
    fully_shard(layer, mesh=mesh)
    layer.to_empty(device="cpu")
    with torch.no_grad():
        for p in layer.parameters():
            p.fill_(float("nan"))
    layer.reset_parameters()
    weight, bias = layer.weight.full_tensor(), layer.bias.full_tensor()
    for part, of_group, size in zip(
        layer.geometry.group_weights(weight),
        bias.split(list(layer.geometry.out_groups.sizes)),
        layer.geometry.in_groups.sizes,
        strict=True,
    ):
        bound = (size * 9) ** -0.5
        assert 0.99 * bound < part.abs().max() <= bound
        assert 0.9 * bound < of_group.abs().max() <= bound
    x = torch.randn(1, 512, 4, 4)
    layer(x).sum().backward()
    assert layer.weight.grad.full_tensor().isfinite().all()


@pytest.mark.parametrize("kernel", [None, "loop", "packed", "nested", "masked"])
def test_distributed_tensors_are_computed_by_any_kernel(kernel, mesh):
    from contextlib import nullcontext

    from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor

    layer = GroupedConv2d(8, 8, 3, padding=1, groups="log:3")
    x = torch.randn(2, 8, 5, 5)
    expected = torch.autograd.grad(by_loop(layer, x).square().sum(), [layer.weight, layer.bias])
    distribute_module(layer, mesh)
    for placement in (Shard(0), Replicate()):
        layer.zero_grad()
        with nullcontext() if kernel is None else forced_kernel(kernel):
            y = layer(distribute_tensor(x, mesh, [placement]))
            y.square().sum().backward()
        assert y.placements == (placement,)
        for parameter, gradient in zip((layer.weight, layer.bias), expected, strict=True):
            torch.testing.assert_close(parameter.grad.full_tensor(), gradient, rtol=1e-4, atol=1e-4)
