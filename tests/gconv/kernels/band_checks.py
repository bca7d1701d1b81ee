"""The band kernels against the definition: on a GPU where there is one, else in Triton's interpreter.

The interpreter must be on before Triton is first imported, so that `test_band.py` runs this file in a process of its
own; on a GPU it takes these tests as they are. Whatever the kernels allocate is filled with NaN first.
"""

import copy
import gc
import weakref
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from gconv import Block, GroupedConv2d, Partition, block, forced_kernel
from gconv.kernels import band, choose, loop
from gconv.kernels.band import correlate, launch, support, tables, weights
from gconv.kernels.band.tiles import Blocking
from gconv.kernels.geometry import Geometry
from gconv.operator import dispatch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
on_a_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16


def geometry(in_sizes, out_sizes, kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1)):
    return Geometry(Partition(tuple(in_sizes)), Partition(tuple(out_sizes)), kernel, stride, padding, dilation)


def numbers(layer, batch=2, size=(5, 5), dtype=F32, seed=0):
    """Random x, weight, bias and dy of a layer."""
    draw = torch.Generator().manual_seed(seed)
    shapes = (
        (batch, layer.in_groups.channels, *size),
        layer.weight_shape,
        (layer.out_groups.channels,),
        (batch, layer.out_groups.channels, *layer.output_size(size)),
    )
    return [torch.randn(shape, generator=draw).to(DEVICE, dtype) for shape in shapes]


@contextmanager
def poisoned():
    """Fill with NaN whatever ``torch.empty`` and ``torch.empty_strided`` give; whole numbers with the largest."""

    def poison(empty):
        def poisoned_empty(*args, **kwargs):
            fresh = empty(*args, **kwargs)
            return fresh.fill_(float("nan") if fresh.is_floating_point() else torch.iinfo(fresh.dtype).max)

        return poisoned_empty

    with mock.patch.multiple(torch, empty=poison(torch.empty), empty_strided=poison(torch.empty_strided)):
        yield


def by_band(layer, x, weight, bias, dy, blocking=None):
    """Output, input gradient and weight gradient by the kernels under test."""
    with poisoned():
        return (
            band.conv2d(x, weight, bias, layer, blocking=blocking),
            band.input_gradient(dy, weight, layer, x.shape[2:], blocking=blocking),
            band.weight_gradient(dy, x, layer, blocking=blocking),
        )


def by_aten(layer, x, weight, bias, dy, dtype):
    """The same by split, one convolution per group and concatenation, computed in ``dtype``."""
    x, weight = (part.detach().to(dtype).contiguous().requires_grad_() for part in (x, weight))
    parts = zip(
        x.split(list(layer.in_groups.sizes), 1),
        layer.group_weights(weight),
        bias.to(dtype).split(list(layer.out_groups.sizes)),
        strict=True,
    )
    y = torch.cat([F.conv2d(*part, layer.stride, layer.padding, layer.dilation) for part in parts], 1)
    return y.detach(), *torch.autograd.grad(y, [x, weight], dy.to(dtype))


def assert_as_exact_as_aten(layer, x, weight, bias, dy):
    """Twice ATen's error in the same dtype and half a step of it at most; in fp32 1e-5 of the largest value."""
    exact = by_aten(layer, x, weight, bias, dy, torch.float64)
    theirs = by_aten(layer, x, weight, bias, dy, x.dtype)
    for name, ours, their, true in zip(
        ("y", "dx", "dweight"), by_band(layer, x, weight, bias, dy), theirs, exact, strict=True
    ):
        assert ours.shape == true.shape and ours.dtype == x.dtype
        if not true.numel():
            continue
        error, largest = (ours - true).abs().max(), true.abs().max()
        allowed = 2 * (their - true).abs().max() + torch.finfo(x.dtype).eps / 2 * largest
        if x.dtype == F32:
            allowed = 1e-5 * largest
        assert error <= allowed, f"{name} is off by {error:.2e} where the largest value is {largest:.2e}"


@pytest.fixture(autouse=True)
def no_tf32():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@st.composite
def layers(draw):
    pairs = draw(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=1, max_size=3))
    layer = geometry(
        *zip(*pairs, strict=True),
        kernel=(draw(st.sampled_from([1, 3, 5])), draw(st.sampled_from([1, 2, 3]))),
        stride=(draw(st.integers(1, 3)), draw(st.integers(1, 2))),
        padding=(draw(st.integers(0, 2)), draw(st.integers(0, 2))),
        dilation=(draw(st.integers(1, 2)), draw(st.integers(1, 2))),
    )
    size = (draw(st.integers(4, 6)), draw(st.integers(4, 6)))
    if min(layer.output_size(size)) < 1:
        size = (9, 9)
    return layer, size


@settings(max_examples=10)
@given(
    layers(),
    st.sampled_from([0, 1, 3]),
    st.sampled_from(["contiguous", "channels_last", "strided"]),
    st.sampled_from([F32, F32, BF16, F16]),
    st.integers(0, 99),
)
def test_any_layer_is_as_exact_as_aten(case, batch, layout, dtype, seed):
    layer, size = case
    x, weight, bias, dy = numbers(layer, batch, size, dtype, seed)
    if layout == "channels_last":
        x, dy = (part.to(memory_format=torch.channels_last) for part in (x, dy))
    elif layout == "strided":
        x, dy = (part.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0) for part in (x, dy))
    assert_as_exact_as_aten(layer, x, weight, bias, dy)


NAMED = {
    "one group": geometry([5], [6]),
    "equal": geometry([8, 8], [8, 8]),
    "logarithmic": geometry([8, 4, 2, 2], [8, 4, 2, 2]),
    "odd": geometry([7, 3, 5], [2, 9, 4], stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    "depthwise": geometry([1] * 24, [1] * 24, stride=(2, 2)),
    "1x1 with stride": geometry([4, 12], [12, 4], kernel=(1, 1), stride=(2, 2), padding=(0, 0)),
    "wide and narrow": geometry([40, 8], [8, 40], kernel=(1, 2)),
    "wide alone": geometry([3, 70], [70, 36], kernel=(1, 1), padding=(0, 0)),
    "padding beyond the kernel": geometry([2, 1], [1, 2], kernel=(2, 1), padding=(3, 2), dilation=(3, 1)),
}


ALSO_IN_16_BITS = ("odd", "depthwise", "wide and narrow")  # in 16 bits the others are slow


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, F32) for name in NAMED]
    + [
        pytest.param(name, BF16, marks=[] if name in ALSO_IN_16_BITS else [pytest.mark.slow], id=f"{name}-bfloat16")
        for name in NAMED
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_named_layers_are_as_exact_as_aten(name, dtype):
    assert_as_exact_as_aten(NAMED[name], *numbers(NAMED[name], dtype=dtype))


def test_every_blocking_gives_the_same():
    layer = geometry([40, 8], [8, 40], kernel=(1, 2))
    inputs = numbers(layer, batch=1)
    exact = by_aten(layer, *inputs, torch.float64)
    for blocking in band.configs(layer, F32):
        for ours, true in zip(by_band(layer, *inputs, blocking), exact, strict=True):
            torch.testing.assert_close(ours.double(), true, rtol=1e-5, atol=1e-5)


@st.composite
def layers_in_rows(draw):
    pairs = draw(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=1, max_size=2))
    layer = geometry(
        *zip(*pairs, strict=True),
        kernel=(3, draw(st.integers(1, 3))),
        padding=(draw(st.integers(0, 3)), draw(st.integers(0, 2))),
        dilation=(1, draw(st.integers(1, 2))),
    )
    return layer, (draw(st.sampled_from([5, 8])), draw(st.sampled_from([5, 8, 16, 19])))


@settings(max_examples=8)
@given(layers_in_rows(), st.sampled_from([1, 2]), st.booleans())
def test_rows_that_share_what_they_read_are_as_exact_as_aten(case, batch, wide):
    """Narrower and wider than a program has columns, heights that four does and does not divide, 64-bit offsets."""
    layer, size = case
    x, weight, bias, dy = numbers(layer, batch, size)
    exact = by_aten(layer, x, weight, bias, dy, torch.float64)
    blocking = Blocking(16, 16, 32, 16, 1, rows=True)
    with mock.patch.object(correlate, "is_wide", lambda *images: wide), poisoned():
        result = (
            *band.conv2d_statistics(x, weight, bias, layer, blocking=blocking),
            band.input_gradient(dy, weight, layer, size, blocking=blocking),
        )
    y, mean, var, dx = (part.double() for part in result)
    for ours, true in ((y, exact[0]), (dx, exact[1])):
        torch.testing.assert_close(ours, true, rtol=1e-5, atol=1e-5)
    expected, center = torch.var_mean(y, (0, 2, 3), correction=0)
    torch.testing.assert_close(mean, center, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(var, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["odd", "1x1 with stride", pytest.param("logarithmic", marks=pytest.mark.slow)])
def test_offsets_of_64_bits_give_the_same_bits(name, monkeypatch):
    inputs = numbers(NAMED[name])
    narrow = by_band(NAMED[name], *inputs)
    for module in (correlate, weights):
        monkeypatch.setattr(module, "is_wide", lambda *images: True)
    for ours, same in zip(by_band(NAMED[name], *inputs), narrow, strict=True):
        assert torch.equal(ours, same)


def test_offsets_have_64_bits_from_2_to_the_31_elements_on():
    near, far = (torch.zeros(1, 1, 1, 1).expand(2**15, 2**12, 4, width) for width in (3, 4))
    assert not launch.is_wide(near) and launch.is_wide(far)


def test_weights_of_any_strides_are_read_as_they_lie():
    layer = geometry([4, 4], [4, 4])
    x, weight, bias, dy = numbers(layer)
    lying = weight.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    assert not lying.is_contiguous() and torch.equal(lying, weight)
    for ours, same in zip(by_band(layer, x, lying, bias, dy), by_band(layer, x, weight, bias, dy), strict=True):
        assert torch.equal(ours, same)


def test_parameters_in_fp32_are_cast_as_they_are_gathered():
    layer = geometry([8, 4], [4, 9])
    x, weight, bias, dy = numbers(layer, dtype=F16)
    stored = weight + torch.randn(layer.weight_shape, device=DEVICE) * 1e-5
    with poisoned():
        y, dx = band.conv2d(x, stored, bias.float(), layer), band.input_gradient(dy, stored, layer, x.shape[2:])
        dweight = band.weight_gradient(dy, x, layer, dtype=F32)
    expected = by_band(layer, x, stored.half(), bias, dy)
    assert torch.equal(y, expected[0]) and torch.equal(dx, expected[1])
    assert dweight.dtype == F32 and torch.equal(dweight.half(), expected[2]) and not torch.equal(dweight, expected[2])


def test_a_weight_beyond_32_bit_offsets_is_named():
    layer = geometry([2], [2], kernel=(1, 1), padding=(0, 0))
    x, *_ = numbers(layer)
    far = torch.empty_strided((2, 2, 1, 1), (2**31, 1, 1, 1), device="meta")
    with pytest.raises(ValueError, match=r"offsets below 2\^31"):
        tables.tables(layer, band.configs(layer, F32)[0], False, x.device, far.stride())


class Allocations(TorchDispatchMode):
    """Allocations of this thread, as a CUDA graph's pool sees them."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.made += [weakref.ref(t) for t in pytree.tree_leaves(result) if isinstance(t, torch.Tensor)]
        return result


def test_nothing_but_outputs_outlives_a_first_call():
    layer = geometry([8, 4, 2, 2], [8, 4, 2, 2])
    x, weight, bias, dy = numbers(layer)
    tables.tables.cache_clear()
    tables.phases.cache_clear()
    with Allocations() as allocations:
        kept = (*by_band(layer, x, weight, bias, dy), *band.conv2d_statistics(x, weight, bias, layer))
    gc.collect()
    storages = {t.untyped_storage().data_ptr() for t in (x, weight, bias, dy, *kept)}
    left = [t for made in allocations.made if (t := made()) is not None]
    assert len(allocations.made) > 10
    assert not [t.shape for t in left if t.untyped_storage().data_ptr() not in storages]


CORRELATIONS = ("correlate", "correlate_rows")


def fails(error, monkeypatch, times=10**6, names=CORRELATIONS):
    """Have Triton fail to build the kernels of these names, so many times."""
    from gconv.kernels.band import programs

    kernels = {name: getattr(programs, name) for name in names}
    failures = []

    class Failing:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            if len(failures) < times:
                failures.append(self.name)
                raise error
            return kernels[self.name][grid]

    for name in kernels:
        monkeypatch.setattr(programs, name, Failing(name))
    return failures


@pytest.fixture
def no_failures():
    yield
    support.failures.clear()
    dispatch.forget()


@pytest.mark.usefixtures("no_failures")
def test_a_blocking_that_does_not_fit_makes_way_for_the_next(monkeypatch):
    from triton.runtime.errors import OutOfResources

    layer = geometry([8, 8], [8, 8])
    x, weight, bias, dy = numbers(layer)
    failures = fails(OutOfResources(131072, 101376, "shared memory"), monkeypatch, times=3)
    y = band.conv2d(x, weight, bias, layer)
    assert failures == ["correlate_rows", "correlate_rows", "correlate"] and band.refuses(layer, F32, DEVICE) is None
    torch.testing.assert_close(y.double(), by_aten(layer, x, weight, bias, dy, torch.float64)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("no_failures")
def test_a_kernel_that_cannot_be_built_makes_way_for_the_next_and_says_so_once(monkeypatch):
    from triton.errors import TritonError

    layer = geometry([8, 4], [4, 8])
    x, weight, bias, dy = numbers(layer)
    failures = fails(TritonError("no such instruction"), monkeypatch)
    with pytest.warns(UserWarning, match=r"'band' for 12 -> 12 channels.*no such instruction; another is used"):
        y = band.conv2d(x, weight, bias, layer, "relu")
    expected = by_aten(layer, x, weight, bias, dy, torch.float64)[0].relu()
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    assert len(failures) == 1, "what does not compile is not tried with other blockings"
    assert "no such instruction" in (band.refuses(layer, F32, x.device) or "")
    with forced_kernel("band"), pytest.raises(ValueError, match=r"cannot compute.*no such instruction"):
        dispatch.conv2d(x, weight, bias, layer)


@pytest.mark.usefixtures("no_failures")
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to find C compiler. Please specify via CC environment variable"),
        RuntimeError("PassManager::run failed"),
        RuntimeError("0 active drivers ([]). There should only be one."),
        AssertionError("libcuda.so cannot found!"),
        ImportError("libtriton.so: cannot open shared object file"),
        OSError("No space left on device"),
    ],
    ids=str,
)
def test_whatever_keeps_triton_from_building_makes_way_for_the_next_kernel(error, monkeypatch):
    layer = geometry([8, 4], [4, 8])
    x, weight, bias, dy = numbers(layer, batch=1)
    fails(error, monkeypatch)
    with pytest.warns(UserWarning, match="another is used"):
        y = band.conv2d(x, weight, bias, layer)
    torch.testing.assert_close(y.double(), by_aten(layer, x, weight, bias, dy, torch.float64)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("no_failures")
@pytest.mark.filterwarnings("ignore:kernel 'band'")
def test_the_next_kernel_casts_parameters_in_fp32_too(monkeypatch):
    from triton.errors import TritonError

    layer = geometry([8, 4], [4, 8])
    x, weight, bias, dy = numbers(layer, dtype=BF16)
    y, dx, dweight = by_aten(layer, x, weight, bias, dy, BF16)
    fails(TritonError("no"), monkeypatch, names=(*CORRELATIONS, "weight_partials"))
    monkeypatch.setattr(support, "kernel_for", lambda *case: loop)
    calls = (
        (lambda: band.conv2d(x, weight.float(), bias.float(), layer), y),
        (lambda: band.conv2d_statistics(x, weight.float(), bias.float(), layer)[0], y),
        (lambda: band.input_gradient(dy, weight.float(), layer, x.shape[2:]), dx),
        (lambda: band.weight_gradient(dy, x, layer, dtype=F32), dweight.float()),
    )
    for call, expected in calls:
        support.failures.clear()
        dispatch.forget()
        torch.testing.assert_close(call(), expected, rtol=0.02, atol=0.02)


@pytest.mark.usefixtures("no_failures")
@pytest.mark.parametrize("name", ["input_gradient", "weight_gradient"])
def test_a_step_goes_on_if_one_of_its_gradients_cannot_be_built(name, monkeypatch):
    """Where band is chosen, not forced; the next step is computed by the next kernel alone."""
    from triton.errors import TritonError

    def rule(op, layer, dtype, device, bits):
        return choose.Choice("merged" if band.refuses(layer, dtype, device) else "band", "by this test")

    monkeypatch.setattr(choose, "by_rule", rule)
    monkeypatch.setattr(choose, "_nearest", lambda *case: None)
    dispatch.forget()
    conv = GroupedConv2d(12, 12, 3, padding=1, groups="8,4").to(DEVICE)
    x, *_ = numbers(conv.geometry)
    expected = by_aten(conv.geometry, x, conv.weight, conv.bias, torch.ones_like(x), torch.float64)
    x.requires_grad_()
    y = conv(x)
    failing = CORRELATIONS if name == "input_gradient" else ("weight_partials",)
    failures = fails(TritonError("no"), monkeypatch, names=failing)
    with pytest.warns(UserWarning, match="another is used"):
        first = torch.autograd.grad(y.sum(), [x, conv.weight])
    y = conv(x)
    second = torch.autograd.grad(y.sum(), [x, conv.weight])
    assert len(failures) == 1
    for gradients in (first, second):
        for ours, true in zip((y, *gradients), expected, strict=True):
            torch.testing.assert_close(ours.detach().double(), true, rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("no_failures")
@pytest.mark.parametrize("error", [RuntimeError("CUDA error: an illegal memory access"), ValueError("no")], ids=str)
def test_other_errors_of_a_kernel_are_raised(error, monkeypatch):
    layer = geometry([8, 8], [8, 8])
    x, weight, _, _ = numbers(layer)
    fails(error, monkeypatch)
    with pytest.raises(type(error), match=str(error)):
        band.conv2d(x, weight, None, layer)


def test_a_weight_gradient_of_many_shares_is_exact_and_the_same_every_time():
    layer = geometry([3, 5], [5, 3])
    x, weight, bias, dy = numbers(layer, batch=3, size=(15, 15))
    again = band.weight_gradient(dy, x, layer)
    shapes, empty = [], torch.empty
    with mock.patch.object(torch, "empty", lambda shape, **kinds: shapes.append(shape) or empty(shape, **kinds)):
        first = band.weight_gradient(dy, x, layer)
    assert shapes[0][0] > 3, "shares"
    assert torch.equal(first, again)
    torch.testing.assert_close(
        first.double(), by_aten(layer, x, weight, bias, dy, torch.float64)[2], rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("dtype", [pytest.param(F32, marks=pytest.mark.slow), BF16], ids=["float32", "bfloat16"])
def test_results_are_the_same_bits_every_time(dtype):
    layer = geometry([7, 3, 5], [2, 9, 4], stride=(2, 1))
    inputs = numbers(layer, dtype=dtype)
    for first, again in zip(by_band(layer, *inputs), by_band(layer, *inputs), strict=True):
        assert torch.equal(first, again)


def test_nothing_outside_the_images_is_read():
    """The images lie between others that are NaN, in the same memory."""
    layer = geometry([7, 3, 6], [6, 9, 4], padding=(2, 2))
    x, weight, bias, dy = numbers(layer, batch=1)

    def between_nans(part):
        around = torch.full((3, *part.shape[1:]), float("nan"), device=DEVICE).to(memory_format=torch.channels_last)
        around[1:2] = part
        return around[1:2]

    inputs = between_nans(x), weight, bias, between_nans(dy)
    for ours, true in zip(by_band(layer, *inputs), by_aten(layer, x, weight, bias, dy, torch.float64), strict=True):
        torch.testing.assert_close(ours.double(), true, rtol=1e-5, atol=1e-5)


def test_a_nan_stays_in_the_bands_that_hold_it():
    layer = geometry([40, 40], [40, 40], kernel=(1, 1), padding=(0, 0))
    x, weight, bias, dy = numbers(layer)
    x[:, 40:] = float("nan")
    dy[:, 40:] = float("nan")
    y, dx, dweight = by_band(layer, x, weight, bias, dy)
    for result in (y, dx):
        assert result[:, :40].isfinite().all() and result[:, 40:].isnan().all()
    assert dweight[:40].isfinite().all() and dweight[40:].isnan().all()


def test_bias_and_relu_are_part_of_the_kernel():
    layer = geometry([8, 4], [4, 9])
    x, weight, bias, dy = numbers(layer)
    expected = by_aten(layer, x, weight, bias, dy, torch.float64)[0]
    with poisoned():
        relu = band.conv2d(x, weight, bias, layer, "relu")
        plain = band.conv2d(x, weight, None, layer)
    torch.testing.assert_close(relu.double(), expected.relu(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(plain.double(), expected - bias.double().view(1, -1, 1, 1), rtol=1e-5, atol=1e-5)
    assert (relu == 0).any() and (relu > 0).any()


@pytest.mark.parametrize(("name", "dtype"), [("odd", F16), ("wide and narrow", F32)], ids=str)
def test_statistics_are_those_of_what_is_written(name, dtype):
    layer = NAMED[name]
    x, weight, bias, _ = numbers(layer, dtype=dtype)
    with poisoned():
        y, mean, var = band.conv2d_statistics(x, weight, bias, layer, blocking=Blocking(pixels=16))
    assert torch.equal(y, band.conv2d(x, weight, bias, layer, blocking=Blocking(pixels=16)))
    expected, center = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    assert mean.dtype == var.dtype == F32
    torch.testing.assert_close(mean.double(), center, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var.double(), expected, rtol=2e-6, atol=0)


def test_statistics_hold_far_from_zero_merged_twice_and_the_same_every_time(monkeypatch):
    monkeypatch.setattr(correlate, "MERGED", 4)
    layer = geometry([1, 2], [2, 1], kernel=(1, 1), padding=(0, 0))
    x, weight, _, _ = numbers(layer, batch=4, size=(9, 9))
    bias = torch.full((3,), 1e4, device=DEVICE)
    (y, mean, var), again = (
        band.conv2d_statistics(x, weight, bias, layer, blocking=Blocking(pixels=16)) for _ in range(2)
    )
    assert -(-4 * 9 * 9 // 16) > 4 * 4, "more rows than two launches merge"
    expected, center = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(mean.double(), center, rtol=1e-7, atol=0)
    torch.testing.assert_close(var.double(), expected, rtol=1e-3, atol=0)  # E[y²] - E[y]² has no digit left
    assert all(torch.equal(one, other) for one, other in zip((y, mean, var), again, strict=True))


def test_statistics_of_nothing_are_nan():
    layer = geometry([4, 2], [2, 4])
    x, weight, bias, dy = numbers(layer, batch=0)
    y, mean, var = band.conv2d_statistics(x, weight, bias, layer)
    assert y.shape == dy.shape and mean.isnan().all() and var.isnan().all()
    assert mean.data_ptr() != var.data_ptr()


def test_a_compiled_block_that_counts_is_that_of_its_modules(monkeypatch):
    monkeypatch.setattr(block, "EPILOGUE_DEVICES", (DEVICE,))
    torch.manual_seed(0)
    plain = nn.Sequential(GroupedConv2d(6, 6, 3, padding=1, groups="4,2"), nn.BatchNorm2d(6), nn.ReLU()).to(DEVICE)
    ours = Block(*copy.deepcopy(plain).children())
    x = torch.randn(2, 6, 4, 4, device=DEVICE)
    used = []
    counted = band.conv2d_statistics
    monkeypatch.setattr(band, "conv2d_statistics", lambda *given: used.append(1) or counted(*given))
    dispatch._named.cache_clear()
    with forced_kernel("band"):
        result = torch.compile(ours, fullgraph=True, backend="aot_eager")(x)
        gradients = torch.autograd.grad(result.square().sum(), [*ours.parameters()])
    dispatch._named.cache_clear()
    assert used
    torch.testing.assert_close(result, plain(x), rtol=1e-4, atol=1e-5)
    expected = torch.autograd.grad(plain(x).square().sum(), [*plain.parameters()])
    for ours_, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours_, theirs, rtol=1e-3, atol=1e-3)


def test_relu_keeps_nan():
    layer = geometry([1], [1], kernel=(1, 1), padding=(0, 0))
    x = torch.tensor([float("nan"), -1.0, 2.0], device=DEVICE).view(3, 1, 1, 1)
    y = band.conv2d(x, torch.ones(1, 1, 1, 1, device=DEVICE), None, layer, "relu").flatten()
    assert y[0].isnan() and y[1:].tolist() == [0.0, 2.0]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_the_memory_format_of_the_input_is_that_of_the_output(layout):
    layer = geometry([4, 2], [2, 4])
    x, weight, bias, dy = (
        part.contiguous(memory_format=layout) if part.dim() == 4 else part for part in numbers(layer)
    )
    y, dx, _ = by_band(layer, x, weight, bias, dy)
    assert y.is_contiguous(memory_format=layout) and dx.is_contiguous(memory_format=layout)


def test_weights_in_channels_last_give_the_same_in_channels_last():
    layer = geometry([4, 4], [4, 4])
    x, weight, bias, dy = numbers(layer)
    other = weight.to(memory_format=torch.channels_last)
    assert other.stride() != weight.stride()
    for ours, same in zip(by_band(layer, x, other, bias, dy), by_band(layer, x, weight, bias, dy), strict=True):
        assert torch.equal(ours, same)
    assert band.conv2d(x, other, bias, layer).is_contiguous(memory_format=torch.channels_last)


def test_gradients_of_an_empty_batch_are_zero():
    layer = geometry([7, 3], [2, 9])
    x, weight, bias, dy = numbers(layer, batch=0)
    y, dx, dweight = by_band(layer, x, weight, bias, dy)
    assert y.shape == dy.shape and dx.shape == x.shape
    assert dweight.shape == layer.weight_shape and not dweight.any()


def test_more_pixels_than_32_bits_count_are_named_before_any_is_touched():
    layer = geometry([1], [1], kernel=(1, 1), padding=(0, 0))
    many = torch.zeros(1, 1, 1, 1, device=DEVICE).expand(2**31, 1, 1, 1)
    weight = torch.zeros(1, 1, 1, 1, device=DEVICE)
    for call in (
        lambda: band.conv2d(many, weight, None, layer),
        lambda: band.input_gradient(many, weight, layer, (1, 1)),
        lambda: band.weight_gradient(many, many, layer),
    ):
        with pytest.raises(ValueError, match=r"2147483648 images of 1×1.*cut the batch"):
            call()


def test_it_refuses_what_it_cannot_compute_and_nothing_else():
    layer = geometry([4, 2], [2, 4])
    for dtype in support.DTYPES:
        assert band.refuses(layer, dtype, DEVICE) is None
    assert "float64" in (band.refuses(layer, torch.float64, DEVICE) or "")
    assert "complex64" in (band.refuses(layer, torch.complex64, DEVICE) or "")
    assert "meta" in (band.refuses(layer, F32, "meta") or "")


@on_a_gpu
def test_more_than_2_to_the_31_elements_are_addressed():
    layer = geometry([32, 16, 16], [32, 16, 16])
    batch = 2**31 // (64 * 256 * 256) + 2
    x = torch.zeros(batch, 64, 256, 256, device=DEVICE, dtype=BF16).contiguous(memory_format=torch.channels_last)
    last, weight, bias, dy = numbers(layer, 1, (256, 256), BF16)
    x[-1:] = last
    y = band.conv2d(x, weight, bias, layer)
    assert y.numel() > 2**31
    assert torch.equal(y[-1:], band.conv2d(last, weight, bias, layer))
    del y
    above = torch.zeros_like(x)
    above[-1:] = dy
    assert torch.equal(
        band.input_gradient(above, weight, layer, (256, 256))[-1:], band.input_gradient(dy, weight, layer, (256, 256))
    )
    torch.testing.assert_close(
        band.weight_gradient(above, x, layer), band.weight_gradient(dy, last, layer), rtol=2e-2, atol=2e-1
    )


@on_a_gpu
def test_a_captured_graph_replays_what_eager_computes():
    layer = geometry([64, 32, 16, 16], [64, 32, 16, 16])
    x, weight, bias, dy = numbers(layer, 4, (14, 14), BF16)

    def run():
        return (
            band.conv2d(x, weight, bias, layer, "relu"),
            band.input_gradient(dy, weight, layer, (14, 14)),
            band.weight_gradient(dy, x, layer),
        )

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    x.normal_()
    dy.normal_()
    graph.replay()
    for replayed, eager in zip(captured, run(), strict=True):
        assert torch.equal(replayed, eager)


@on_a_gpu
@pytest.mark.parametrize("dtype", [F32, F16, BF16], ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("sizes", [(128, 64, 32, 32), (8,) * 32, (128, 128), (100, 101, 55)], ids=str)
def test_layers_of_real_size_are_as_exact_as_aten(sizes, dtype):
    layer = geometry(sizes, sizes)
    assert_as_exact_as_aten(layer, *numbers(layer, 8, (14, 14), dtype))
    layer = geometry(sizes, sizes[::-1], stride=(2, 2))
    assert_as_exact_as_aten(layer, *numbers(layer, 8, (15, 15), dtype))
