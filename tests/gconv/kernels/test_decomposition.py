"""Kernels made of uniform convolutions: infinities stay in their group, weights are current, equal groups share."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from gconv import GroupedConv2d, forced_kernel
from gconv.kernels import aten, decomposition, inference_weights, loop, merged, packed, runnable, tails
from gconv.kernels.packing import equal_neighbours, narrow_neighbours
from gconv.operator.ops import grouped_conv2d

PARTITIONS = {"log": "log:4", "irregular": "5,3,4,4", "equal": 4, "many": [1, 2] * 4 + [4], "halves": 2}


@pytest.fixture(params=PARTITIONS, ids=str)
def layer(request):
    torch.manual_seed(0)
    return GroupedConv2d(16, 16, 3, padding=1, groups=PARTITIONS[request.param])


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_infinities_stay_in_their_group_in_every_kernel(layer, number):
    """If one number of the last group is not finite, all other groups have the same bits as without it."""
    sizes = layer.geometry.out_groups.sizes
    clean = layer.out_channels - sizes[-1]
    x = torch.randn(2, 16, 6, 6)
    dy = torch.randn(2, 16, 6, 6)
    bad_x, bad_dy = x.clone(), dy.clone()
    bad_x[0, -1, 2, 2] = bad_dy[1, -1, 3, 3] = number
    for kernel in runnable(layer.geometry, x.dtype, "cpu"):
        results = []
        for image, gradient in ((x, dy), (bad_x, dy), (x, bad_dy), (bad_x, bad_dy)):
            image = image.clone().requires_grad_()
            with forced_kernel(kernel):
                y = layer(image)
                dx, dw = torch.autograd.grad(y, [image, layer.weight], gradient)
            weights = torch.cat([part.flatten() for part in layer.geometry.group_weights(dw)[:-1]])
            results.append((y.detach()[:, :clean], dx[:, :clean], weights))
        for right, *others in zip(*results, strict=True):
            for other in others:
                assert torch.allclose(other, right, atol=1e-5), kernel


def test_infinities_stay_in_their_group_when_compiled():
    layer = GroupedConv2d(16, 16, 3, padding=1, groups="log:4")
    x = torch.randn(2, 16, 6, 6)
    x[:, -1] = float("inf")
    with forced_kernel("packed"), torch.no_grad():
        y = torch.compile(layer, backend="aot_eager", fullgraph=True)(x)
    assert y[:, :14].isfinite().all()
    assert not y[:, 14:].isfinite().all()


@pytest.mark.parametrize("kernel", ["loop", "merged", "tails", "packed", "nested", "masked"])
@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "last"])
def test_no_result_uses_an_old_weight(kernel, guard, layout):
    """However the weight is changed, and by other layers of the same geometry."""
    torch.manual_seed(1)
    layer, other = (GroupedConv2d(16, 16, 3, groups="log:4", bias=False) for _ in range(2))
    x = torch.randn(1, 16, 5, 5).contiguous(memory_format=layout)
    saved = {name: value.clone() for name, value in layer.state_dict().items()}

    def changed_by_numpy():
        layer.weight.detach().numpy()[:] *= 2

    changes = {
        "nothing": lambda: None,
        "in place": lambda: nn.init.normal_(layer.weight),
        "data in place": lambda: layer.weight.data.mul_(3),
        "other data": lambda: setattr(layer.weight, "data", torch.randn(layer.weight.shape)),
        "other parameter": lambda: setattr(layer, "weight", nn.Parameter(torch.randn(layer.weight.shape))),
        "numpy": changed_by_numpy,
        "another layer": lambda: other(x),
        "state_dict": lambda: layer.load_state_dict(saved),
        "another layout": lambda: layer(x.contiguous()),
        "one number": lambda: layer.weight.data[-1, -1, -1].add_(1),
        "another layer's": lambda: setattr(layer, "weight", other.weight),
    }
    with guard(), forced_kernel(kernel):
        for how, change in changes.items():
            change()
            for _ in range(3):  # the first sees the change, the second keeps the weight, the third uses it
                y = layer(x)
                with forced_kernel("reference"):
                    assert torch.allclose(y.double(), layer(x), atol=1e-5), how
    with forced_kernel(kernel):  # tensors kept by inference must not get into training
        other(x.requires_grad_()).sum().backward()


@pytest.fixture
def made(monkeypatch):
    """The weights that uniform convolutions are given."""
    given = []
    convolve = aten.convolve
    monkeypatch.setattr(aten, "convolve", lambda *a: given.append(a[1]) or convolve(*a))
    return given


def test_in_inference_a_weight_is_made_once_and_goes_with_its_parameter(made):
    x = torch.randn(1, 16, 5, 5).to(memory_format=torch.channels_last)
    layer = GroupedConv2d(16, 16, 3, groups="log:4", bias=False)
    kept = inference_weights._kept
    before = len(kept)
    with torch.no_grad(), forced_kernel("packed"):
        for _ in range(4):
            layer(x)
    assert made[1] is made[2] is made[3] is not made[0]
    assert made[1].is_mkldnn or made[1].is_contiguous(memory_format=torch.channels_last)
    assert len(kept) == before + 1
    del layer
    assert len(kept) == before


def test_in_training_no_weight_is_kept(made):
    layer = GroupedConv2d(16, 16, 3, groups="log:4", bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(3):
        with forced_kernel("packed"):
            layer(torch.randn(1, 16, 5, 5)).sum().backward()
        optimizer.step()
    seen = inference_weights._kept.get(layer.weight)
    assert seen is None or not any(seen.forms.values())
    assert len({id(weight) for weight in made}) == len(made)


# Equal groups, unequal ones, and some that oneDNN computes with a packed weight where ATen would take another library.
CUTS = {"equal": (16, 4, 5), "unequal": (16, "log:4", 5), "packed": (64, "log:3", 14)}


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("optimizer", ["sgd", "foreach", "fused", "adam"])
def test_inference_follows_training(cut, optimizer):
    """The kept weight is that of the parameter after a step, after loading, moving, copying and pickling."""
    torch.manual_seed(0)
    channels, groups, size = CUTS[cut]
    layer = GroupedConv2d(channels, channels, 3, groups=groups)
    x = torch.randn(1, channels, size, size).to(memory_format=torch.channels_last)
    kinds = {
        "sgd": lambda: torch.optim.SGD(layer.parameters(), 0.1, foreach=False),
        "foreach": lambda: torch.optim.SGD(layer.parameters(), 0.1, foreach=True),
        "fused": lambda: torch.optim.Adam(layer.parameters(), 0.1, fused=True),
        "adam": lambda: torch.optim.AdamW(layer.parameters(), 0.1),
    }
    steps = kinds[optimizer]()

    def right(layer, x):
        with torch.no_grad():
            for _ in range(3):
                y = layer(x)
                with forced_kernel("reference"):
                    torch.testing.assert_close(y.double(), layer(x).double(), atol=1e-3, rtol=1e-4)

    right(layer, x)
    for _ in range(2):
        layer(x).square().mean().backward()
        steps.step()
        steps.zero_grad()
        right(layer, x)
    layer.load_state_dict({name: torch.randn_like(value) for name, value in layer.state_dict().items()})
    right(layer, x)
    for copied in (copy.deepcopy(layer), copy.copy(layer), pickle.loads(pickle.dumps(layer))):
        right(copied, x)
        with torch.no_grad():
            copied.weight.mul_(2)
        right(copied, x)
        right(layer, x)
    layer.weight.data = torch.randn(layer.weight.shape)
    right(layer, x)
    right(layer.to(torch.float64), x.double())
    right(layer.to(torch.float32), x)
    layer.load_state_dict({k: torch.randn_like(v) for k, v in layer.state_dict().items()}, assign=True)
    right(layer, x)


@pytest.mark.parametrize("kernel", ["loop", "merged", "packed"])
def test_kept_weights_are_bounded_and_change_no_bits(kernel):
    layer = GroupedConv2d(64, 64, 3, padding=1, groups="log:3")
    images = [torch.randn(n, 64, s, s).to(memory_format=torch.channels_last) for n in (1, 2, 3) for s in (4, 6, 9, 14)]
    with torch.no_grad(), forced_kernel(kernel):
        first = [layer(x) for x in images]
        for _ in range(3):
            assert all(torch.equal(layer(x), y) for x, y in zip(images, first, strict=True))
    assert 0 < len(inference_weights._kept[layer.weight].forms) <= inference_weights.MAX_FORMS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_large_weight_of_equal_groups_is_kept_for_one_image_and_has_the_bits_of_torch(made, dtype):
    layer = GroupedConv2d(256, 256, 3, padding=1, groups=2).to(dtype=dtype, memory_format=torch.channels_last)
    plain = nn.Conv2d(256, 256, 3, padding=1, groups=2).to(dtype=dtype, memory_format=torch.channels_last)
    images = [torch.randn(n, 256, 8, 8, dtype=dtype).to(memory_format=torch.channels_last) for n in (1, 2)]
    with torch.no_grad(), forced_kernel("native"):
        for _ in range(2):  # before and after the parameter changes
            plain.load_state_dict(layer.state_dict())
            for x in (*images, *images, images[0]):
                assert torch.equal(layer(x), plain(x))
            layer.weight.mul_(2)
    by_onednn = dtype == torch.float32 and aten.ONEDNN is not None
    assert [weight.is_mkldnn for weight in made] == 2 * [False, False, by_onednn, False, by_onednn]


def test_the_storage_of_a_kept_weight_can_be_resized():
    layer, x = GroupedConv2d(16, 16, 3, groups="log:4"), torch.randn(1, 16, 5, 5)
    with torch.no_grad(), forced_kernel("packed"):
        for _ in range(3):
            layer(x)
    layer.weight.untyped_storage().resize_(0)


def test_a_traced_program_holds_parameters_and_no_kept_weights():
    layer = GroupedConv2d(16, 16, 3, groups="log:4")
    x = torch.randn(1, 16, 5, 5).to(memory_format=torch.channels_last)
    with torch.no_grad(), forced_kernel("packed"):
        for _ in range(3):
            layer(x)
        program = torch.jit.trace(layer, x)
        program.weight.mul_(2)
        program.bias.mul_(2)
        torch.testing.assert_close(program(x), layer(x))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize(
    ("sizes", "kernel"), [((192, 64, 64), kernel) for kernel in ("loop", "merged", "packed")] + [((160, 160), "loop")]
)
def test_a_weight_of_many_channels_has_the_gradients_of_a_loop(sizes, kernel, layout, activation):
    """Both gradients of such a layer are computed together; results have the memory formats of their tensors."""
    torch.manual_seed(0)
    layer = GroupedConv2d(320, 320, 3, padding=1, groups=sizes, dtype=torch.float64).to(memory_format=layout)
    x = torch.randn(1, 320, 4, 4, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    assert loop.KERNEL.decompose(layer.geometry).has_heavy_weight(x)
    weights = [part.detach().clone().requires_grad_() for part in layer.group_weights()]
    biases = [part.detach().clone().requires_grad_() for part in layer.bias.split(sizes)]
    parts = zip(x.split(sizes, 1), weights, biases, strict=True)
    y_loop = torch.cat([nn.functional.conv2d(*part, padding=1) for part in parts], 1)
    y_loop = y_loop.relu() if activation == "relu" else y_loop
    dy = torch.randn_like(y_loop)
    with forced_kernel(kernel):
        y = grouped_conv2d(x, layer.weight, layer.bias, layer.geometry, activation)
        dx, dw, db = torch.autograd.grad(y, [x, layer.weight, layer.bias], dy)
    dx_loop, *rest = torch.autograd.grad(y_loop, [x, *weights, *biases], dy)
    torch.testing.assert_close(y, y_loop)
    torch.testing.assert_close(dx, dx_loop)
    for part, part_loop in zip(layer.geometry.group_weights(dw), rest[: len(sizes)], strict=True):
        torch.testing.assert_close(part, part_loop)
    torch.testing.assert_close(db, torch.cat(rest[len(sizes) :]))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert dx.is_contiguous(memory_format=torch.channels_last)
    if kernel != "packed":
        assert dw.stride() == layer.weight.stride()


@pytest.mark.parametrize("needed", [(True, True, True), (True, False, False), (False, True, False)])
def test_second_derivatives_where_both_gradients_are_computed_together(monkeypatch, needed):
    monkeypatch.setattr(decomposition, "HEAVY_NUMBERS", 0)
    torch.manual_seed(0)
    layer = GroupedConv2d(6, 6, 3, groups="3,2,1").to(dtype=torch.float64, memory_format=torch.channels_last)
    given = [torch.randn(1, 6, 3, 4, dtype=torch.float64), layer.weight.detach(), layer.bias.detach()]
    given = [t.requires_grad_(need) for t, need in zip(given, needed, strict=True)]
    with forced_kernel("loop"):

        def call(x, weight, bias):
            return grouped_conv2d(x, weight, bias, layer.geometry)

        assert "_Training" in str(call(*given).grad_fn)
        assert gradcheck(call, given)
        assert gradgradcheck(call, given)


def test_threads_do_not_share_a_weight():
    layers = [GroupedConv2d(16, 16, 3, groups="log:4", bias=False) for _ in range(4)]
    x = torch.randn(1, 16, 5, 5)
    with torch.no_grad(), forced_kernel("reference"):
        right = [layer(x).float() for layer in layers]
    wrong = []

    def run(number):
        with torch.no_grad():
            for _ in range(200):
                y = packed.conv2d(x, layers[number].weight, None, layers[number].geometry)
                if not torch.allclose(y, right[number], atol=1e-5):
                    wrong.append(number)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_equal_neighbours_share_a_call():
    sizes = (32, 16, 8, 4, 4)
    calls = equal_neighbours(sizes, sizes)
    assert [call.bins for call in calls] == [((0, 1),), ((1, 2),), ((2, 3),), ((3, 4), (4, 5))]
    assert [call.in_capacity for call in calls] == [32, 16, 8, 4]
    assert [call.links for call in calls] == [1024, 256, 64, 32]
    assert len(equal_neighbours((4, 4, 4), (2, 4, 4))) == 2  # outputs must be equal too


def test_narrow_neighbours_share_a_bin_of_at_most_16_channels():
    sizes = (32, 16, 8, 4, 4)
    calls = narrow_neighbours(sizes, sizes)
    assert [call.bins for call in calls] == [((0, 1),), ((1, 2), (2, 5))]  # the bin joins the call of the group of 16
    assert [call.in_capacity for call in calls] == [32, 16]
    assert calls[-1].links == 2 * 256
    twice = narrow_neighbours((8, 4, 4, 8, 4, 4), (8, 4, 4, 8, 4, 4))
    assert [call.bins for call in twice] == [((0, 3), (3, 6))]  # two equal bins in one call
    layer = GroupedConv2d(96, 96, 3, groups="48,24,24")
    assert "no narrow groups" in (tails.refuses(layer.geometry, torch.float32, "cpu") or "")


def test_many_unequal_groups_are_sorted_so_that_a_size_is_a_call(monkeypatch):
    layer = GroupedConv2d(54, 36, 3, padding=1, groups=[1, 2, 1] * 9, in_groups=[1, 2, 3] * 9)
    calls = []
    convolve = aten.convolve
    monkeypatch.setattr(aten, "convolve", lambda *args: calls.append(args[4]) or convolve(*args))
    x = torch.randn(2, 54, 5, 5).to(memory_format=torch.channels_last)
    y = merged.conv2d(x, layer.weight.detach(), layer.bias, layer.geometry)
    assert calls == [9, 9, 9]
    assert y.is_contiguous(memory_format=torch.channels_last)
    with forced_kernel("reference"):
        torch.testing.assert_close(y.double(), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", ["log:3", 4])
def test_wrong_arguments_raise_where_the_weight_is_kept(groups):
    layer = GroupedConv2d(16, 16, 3, groups=groups)
    wrong = [torch.randn(1, 12, 8, 8), torch.randn(1, 20, 8, 8), torch.randn(1, 16, 2, 2)]
    with torch.no_grad():
        for _ in range(3):
            layer(torch.randn(1, 16, 8, 8).to(memory_format=torch.channels_last))
        for x in wrong:
            with pytest.raises(RuntimeError, match="input of shape"):
                layer(x.to(memory_format=torch.channels_last))
