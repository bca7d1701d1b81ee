"""Lowering of the operator by Inductor: the candidate kernels, and those that it inlines.

Without this file an op of ``library.py`` is one call that Inductor cannot look into. With it, where torch has the
autotuning of custom ops (``torch._inductor.kernel.custom_op``, here with torch 2.13) and sizes are known:

- ``mode="max-autotune"``: Inductor times the kernels for each op and shape on the user's own device. The op itself,
  with its own choice, is one of the candidates.
- other modes, on CUDA: the operator's choice, from its table or by its rule, without timing. On a CPU the op stays one
  call in these modes: inlined it was no faster (two layers of 128@16, log:4: 49.6 and 49.5 ms a step; eager 31.2).

A kernel of ATen calls is inlined: splits, concatenations, padding and casts fuse with surrounding operations, such as
batch norm with its statistics and ReLU. The convolution itself stays a call. The band kernel stays one call with its
epilogue inside. On a CPU only kernels without zeros between groups are candidates, so that nothing infinite crosses
groups.

Where torch lacks the interface, or sizes are symbols, everything stays one call.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from gconv.kernels import KERNELS, find, refusal
from gconv.kernels.aten import is_channels_last, mean_and_variance
from gconv.kernels.choose import choose, pixel_bits
from gconv.kernels.geometry import Geometry
from gconv.operator import dispatch, library

MAX_LOOP_GROUPS = 16  # with more groups, ``loop`` is no candidate
GEOMETRY_ARGUMENTS = ("in_sizes", "out_sizes", "kernel_size", "stride", "padding", "dilation")

library.definitions.define(
    "compute(str op, str kernel, Tensor[] tensors, Tensor? bias, int[] in_sizes, int[] out_sizes, int[2] kernel_size, "
    "int[2] stride, int[2] padding, int[2] dilation, str activation, SymInt[] input_size) -> Tensor"
)


def _compute(op: str, kernel: str, tensors: list[Tensor], bias: Tensor | None, *rest: Any) -> Tensor:
    """Compute one op by one kernel."""
    geometry, (activation, input_size), (first, second) = library._geometry(rest), rest[6:], tensors
    if op == "conv2d":
        return find(kernel).conv2d(first, second, bias, geometry, activation)
    if op == "input_gradient":
        return find(kernel).input_gradient(first, second, geometry, tuple(input_size))
    return find(kernel).weight_gradient(first, second, geometry)


def _fake(op: str, kernel: str, tensors: list[Tensor], bias: Tensor | None, *rest: Any) -> Tensor:
    *numbers, activation, input_size = rest
    if op == "conv2d":
        return library._fake_conv2d(*tensors, bias, *numbers, activation)
    if op == "input_gradient":
        return library._fake_input_gradient(*tensors, *numbers, input_size)
    return library._fake_weight_gradient(*tensors, *numbers)


library.definitions.impl("compute", _compute, "CompositeExplicitAutograd")
torch.library.register_fake("gconv::compute", _fake, lib=library.definitions)


@cache
def register() -> bool:
    """Register the lowerings; return False if this torch has no interface for them."""
    try:
        from torch._inductor.kernel.custom_op import _lower_single_impl, autotune_custom_op
        from torch._inductor.lowering import user_lowerings
    except ImportError:
        return False
    for op in ("conv2d", "input_gradient", "weight_gradient"):
        user_lowerings[getattr(library.ops, op).default] = partial(_lower, op, autotune_custom_op, _lower_single_impl)
    user_lowerings[library.ops.conv2d_statistics.default] = partial(_lower_statistics, _lower_single_impl)
    return True


def register_if_loaded() -> bool:
    """Register the lowerings if Inductor is loaded. Called while a program is traced."""
    return "torch._inductor" in sys.modules and register()


register_if_loaded._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def _lower(op: str, autotune: Callable[..., Any], inline: Callable[..., Any], *arguments: Any) -> Any:
    """Return the node of an op in Inductor's program; None to keep the op as one call."""
    from torch._inductor import config
    from torch._inductor.ir import ir_node_to_tensor
    from torch._inductor.virtualized import V

    bias, numbers = (arguments[2], arguments[3:]) if op == "conv2d" else (None, arguments[2:])
    nodes = [*arguments[:2], *([] if bias is None else [bias])]
    with V.fake_mode:
        fakes = [ir_node_to_tensor(node) for node in nodes]
    if any(type(size) is not int for fake in fakes for size in fake.shape):
        return None
    geometry = library._geometry(numbers)
    names = candidates(op, geometry, fakes, numbers, config.max_autotune)
    last = "activation" if op == "conv2d" else "input_size"
    given: dict[str, Any] = dict(
        zip((*GEOMETRY_ARGUMENTS, last), numbers, strict=False)
    )  # a weight gradient has neither
    if op == "conv2d" and bias is None:
        given["bias"] = None
    if not names:
        return None
    ways = [_implementation(op, name) for name in names]
    if config.max_autotune:
        overload = getattr(library.ops, op).default
        return autotune(f"gconv_{op}", ways, nodes, [given] * len(ways), overload)[0]
    return inline(ways[0], {}, given, nodes, f"gconv_{op}")


def _lower_statistics(inline: Callable[..., Any], *arguments: Any) -> Any:
    """Return the nodes of result, mean and variance by the operator's own choice; None to keep the op as one call.

    A kernel that computes statistics of its output stays one call. After an inlined one they fuse with the next ops.
    """
    from torch._inductor.ir import ir_node_to_tensor
    from torch._inductor.virtualized import V

    (x, weight, bias), numbers = arguments[:3], arguments[3:]
    nodes = [x, weight, *([] if bias is None else [bias])]
    with V.fake_mode:
        fakes = [ir_node_to_tensor(node) for node in nodes]
    if any(type(size) is not int for fake in fakes for size in fake.shape):
        return None
    names = candidates("conv2d", library._geometry(numbers), fakes, numbers, False)
    if not names:
        return None
    forward = _implementation("conv2d", names[0])

    def way(*tensors: Tensor, **cut: Any) -> tuple[Tensor, ...]:
        y = forward(*tensors, **cut)
        return y, *mean_and_variance(y)

    given = dict(zip(GEOMETRY_ARGUMENTS, numbers, strict=True))
    return inline(way, {}, given, nodes, "gconv_conv2d_statistics")


def candidates(
    op: str, geometry: Geometry, tensors: list[Tensor], numbers: tuple[Any, ...], all_of_them: bool
) -> tuple[str, ...]:
    """Return the names of the kernels that Inductor may use instead of a call: all that can, or the chosen one."""
    x, device = tensors[0], tensors[0].device
    inlined = [kernel.name for kernel in KERNELS.values() if device.type in kernel.inlined_on]
    called = [kernel.name for kernel in KERNELS.values() if device.type in kernel.called_on]
    input_size = numbers[6] if op == "input_gradient" else tensors[op == "weight_gradient"].shape[2:]
    name = dispatch.forced(geometry, x.dtype, device)
    if all_of_them and name is None:
        able = (name for name in (*inlined, *called) if refusal(name, geometry, x.dtype, device) is None)
        return tuple(name for name in able if name != "loop" or geometry.groups <= MAX_LOOP_GROUPS)
    if device.type == "cpu" and not all_of_them:
        return ()
    if name is None:
        bits = pixel_bits(x.shape[0], *input_size)
        name = choose(op, geometry, x.dtype, device, is_channels_last(x), bits).kernel
    return (name,) if name in inlined else ()


def _implementation(op: str, kernel: str) -> Callable[..., Tensor]:
    """Return a function that computes one op by one kernel, as Inductor traces it: tensors first, numbers by name."""

    def way(
        first: Tensor, second: Tensor, bias: Tensor | None = None, *, activation="none", input_size=(), **cut: Any
    ) -> Tensor:
        numbers = [cut[name] for name in GEOMETRY_ARGUMENTS]
        if first.device.type in KERNELS[kernel].called_on:
            return library.ops.compute.default(op, kernel, [first, second], bias, *numbers, activation, input_size)
        y = _compute(op, kernel, [first, second], bias, *numbers, "none", input_size)
        y = y.relu() if activation == "relu" else y
        return y.contiguous(memory_format=library._layout(first, second)) if op != "weight_gradient" else y.contiguous()

    way.__name__ = f"{op}_{kernel}"
    return way
