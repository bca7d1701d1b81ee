"""No op keeps a tensor that it made: in the private pool of a CUDA graph torch raises for each that is no output."""

import gc

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gconv import GroupedConv2d, forced_kernel
from gconv.kernels import CANDIDATES, refusal
from gconv.operator import library


class Warmup(TorchDispatchMode):
    """The mode that torch uses while it warms up a graph: ops run unchanged."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """Objects of other modules are no longer looked at, neither here nor by the garbage collector."""
    gc.collect()
    gc.freeze()


def tensors():
    gc.collect()
    return {id(o): o for o in gc.get_objects() if isinstance(o, torch.Tensor)}


@pytest.mark.filterwarnings("ignore:.torch.distributed.reduce_op.")
@pytest.mark.parametrize("kernel", [name for name in CANDIDATES if name != "band"])
def test_nothing_but_outputs_survives_the_first_call_of_an_op(kernel):
    dtype = torch.bfloat16 if kernel == "widened" else torch.float32
    # Of this size in no other test: what is kept for a geometry is made at its first call.
    groups = 4 if kernel == "native" else "16,8,5,3"
    layer = GroupedConv2d(32, 32, 3, padding=1, groups=groups, dtype=dtype)
    if refusal(kernel, layer.geometry, dtype, torch.device("cpu")):
        pytest.skip("it does not compute such a layer")
    x = torch.randn(2, 32, 5, 5, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight, bias = layer.weight.detach(), layer.bias.detach()

    def run():
        with forced_kernel(kernel):
            return [
                library.conv2d(x, weight, bias, layer.geometry),
                *library.conv2d_statistics(x, weight, bias, layer.geometry),
                library.input_gradient(x, weight, layer.geometry, (5, 5)),
                library.weight_gradient(x, x, layer.geometry),
            ]

    before = tensors()
    with Warmup():
        outputs = run()
    left = [t for key, t in tensors().items() if key not in before and not any(t is o for o in outputs)]
    assert not left, [tuple(t.shape) for t in left]
