"""What Inductor makes of the operator, read from the code that it writes: nothing is run but what the tests say."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._inductor import config
from torch._inductor.utils import get_code

from gconv import GroupedConv2d, forced_kernel
from gconv.kernels import KERNELS, find
from gconv.operator import inductor, library

pytestmark = pytest.mark.skipif(not inductor.register(), reason="this torch has no autotuning of custom ops")


@pytest.fixture(autouse=True)
def afresh():
    """Neither programs nor choices from before."""
    torch._dynamo.reset()
    with config.patch(force_disable_caches=True):
        yield


def code_of(model, x):
    with torch.no_grad():
        return get_code(torch.compile(model, fullgraph=True), x)[0]  # the wrapper; kernels in C++ follow


def calls(code):
    """Kernels and library calls in the order in which a program makes them."""
    program = code[code.index("def call(") :]
    name = r"(extern_kernels\.\w+|torch\.ops\.[\w.]+|(?:cpp|triton)\w*_fused_\w+)"
    return re.findall(rf"^\s*(?:\w+ = )?{name}[(.]", program, re.MULTILINE)


def block(groups):
    torch.manual_seed(0)
    return nn.Sequential(GroupedConv2d(16, 16, 3, padding=1, groups=groups), nn.BatchNorm2d(16), nn.ReLU())


def image():
    return torch.randn(4, 16, 8, 8).to(memory_format=torch.channels_last)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_unequal_groups_are_one_call_beside_which_norm_and_relu_fuse():
    found = calls(code_of(block("log:3"), image()))
    assert [name for name in found if "fused" not in name] == ["torch.ops.gconv.conv2d.default"]
    (fused,) = [name for name in found if "fused" in name]
    assert "batch_norm" in fused and "relu" in fused


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_equal_groups_are_torchs_own_convolution():
    found = calls(code_of(block(4), image()))
    assert "torch.ops.gconv.conv2d.default" not in found
    (convolution,) = [name for name in found if "fused" not in name]
    assert convolution.endswith("convolution")


@pytest.fixture
def one_candidate(monkeypatch):
    """The operator's choice inlined without timing, as on CUDA."""

    def choose(name):
        monkeypatch.setattr(inductor, "candidates", lambda *case: (name,))

    return choose


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_inlined_kernel_fuses_its_concatenation_with_norm_and_relu_and_leaves_convolutions_calls(one_candidate):
    one_candidate("merged")
    found = calls(code_of(block("log:3"), image()))
    convolutions = [name for name in found if "convolution" in name]
    assert len(convolutions) == 2, "8 channels alone, twice 4 channels as equal groups"
    assert "gconv" not in " ".join(found)
    assert "batch_norm" in found[-1] and "relu" in found[-1], "the last kernel reads what the convolutions wrote"
    assert not any("cat" in name for name in found), "no kernel copies what they wrote once more"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_band_kernel_stays_one_call_with_its_epilogue_inside(one_candidate, monkeypatch):
    """Triton kernels that a user writes have no epilogue of Inductor's: bias and ReLU are the kernel's own."""
    one_candidate("band")
    monkeypatch.setitem(KERNELS, "band", replace(KERNELS["band"], called_on=("cpu",)))
    numbers = library._numbers(GroupedConv2d(16, 16, 3, padding=1, groups="log:3").geometry)

    def forward(x, weight, bias):
        return torch.ops.gconv.conv2d(x, weight, bias, *numbers, "relu") * 2

    layer = block("log:3")[0]
    code = get_code(torch.compile(forward), image(), layer.weight.detach(), layer.bias.detach())[0]
    found = calls(code)
    assert found[0] == "torch.ops.gconv.compute.default" and "'band'" in code and "'relu'" in code
    assert len(found) == 2 and "mul" in found[1] and "relu" not in found[1]


def test_candidates_are_kernels_that_can_compute_the_layer():
    few = GroupedConv2d(16, 16, 3, groups="log:3").geometry
    many = GroupedConv2d(64, 64, 3, groups=",".join(["1"] * 20 + ["2"] * 22)).geometry
    x, numbers = image(), library._numbers(few)
    assert inductor.candidates("conv2d", few, [x, x], numbers, True) == ("loop", "merged")
    assert inductor.candidates("conv2d", many, [x, x], numbers, True) == ("merged",)
    assert inductor.candidates("conv2d", few, [x, x], numbers, False) == (), "on a CPU nothing is inlined untimed"
    with forced_kernel("loop"):
        assert inductor.candidates("conv2d", few, [x, x], numbers, True) == ("loop",)
    with forced_kernel("packed"):
        assert inductor.candidates("conv2d", few, [x, x], numbers, True) == (), "what looks at its input is not traced"


@pytest.mark.parametrize("op", ["conv2d", "input_gradient", "weight_gradient"])
def test_a_way_computes_what_the_op_does(op):
    layer = GroupedConv2d(12, 12, 3, padding=1, stride=2, groups="6,4,2")
    numbers = dict(zip(inductor.NUMBERS, library._numbers(layer.geometry), strict=True))
    x, weight, bias = torch.randn(2, 12, 9, 9), layer.weight.detach(), layer.bias.detach()
    dy = torch.randn(2, 12, 5, 5)
    reference = find("reference")
    for kernel in ("loop", "merged"):
        way = inductor._way(op, kernel)
        if op == "conv2d":
            found = way(x, weight, bias, activation="relu", **numbers)
            expected = reference.conv2d(x, weight, bias, layer.geometry, "relu")
        elif op == "input_gradient":
            found = way(dy, weight, input_size=(9, 9), **numbers)
            expected = reference.input_gradient(dy, weight, layer.geometry, (9, 9))
        else:
            found = way(dy, x, **numbers)
            expected = reference.weight_gradient(dy, x, layer.geometry)
        torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_step_tuned_by_inductor_has_the_gradients_of_eager():
    model, x = block("log:3"), image().requires_grad_()
    compiled = torch.compile(model, mode="max-autotune", fullgraph=True)
    wanted = [x, *model.parameters()]
    ours = torch.autograd.grad(compiled(x).square().sum(), wanted)
    for found, expected in zip(ours, torch.autograd.grad(model(x).square().sum(), wanted), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
