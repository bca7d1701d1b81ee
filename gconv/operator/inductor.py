"""Lowering of the operator by Inductor: the candidate kernels, and those that it inlines.

Without this file an op of ``library.py`` is one call that Inductor cannot look into. This file changes that if torch
has the autotuning of custom ops (``torch._inductor.kernel.custom_op``, here torch 2.13) and the sizes are known:

- ``mode="max-autotune"``: Inductor times the kernels for each op and shape on the user's own device. The op itself,
  with its own choice, is one of the candidates.
- other modes, on CUDA: the operator's choice, from its table or by its rule, without timing. On a CPU the op stays one
  call in these modes: inlined it was no faster (two layers of 128@16, log:4: 49.6 and 49.5 ms a step; eager 31.2).

Kernels are inlined. If a kernel consists of ATen calls, the convolution itself stays a call; splits, concatenations,
padding and casts fuse with surrounding operations, such as batch norm with its statistics and ReLU. The Triton programs
of the band kernel become part of the compiled program, with bias, ReLU and statistics inside; their tables become
constants. Inductor does not fuse into them. If one cannot be built, the next kernel is inlined. On a CPU only kernels
without zeros between groups are candidates, so that no infinity crosses groups.

If torch has no such interface, or sizes are symbols, every op stays one call.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gconv.kernels import KERNELS, OPS, find, refusal
from gconv.kernels.aten import is_channels_last, mean_and_variance
from gconv.kernels.choose import choose, pixel_bits
from gconv.kernels.geometry import Geometry
from gconv.operator import dispatch, library

MAX_LOOP_GROUPS = 16  # with more groups, ``loop`` is no candidate
GEOMETRY_ARGUMENTS = ("in_sizes", "out_sizes", "kernel_size", "stride", "padding", "dilation")


@cache
def register() -> bool:
    """Register the lowerings; return False if this torch has no interface for them."""
    try:
        from torch._inductor.kernel.custom_op import _lower_single_impl, autotune_custom_op
        from torch._inductor.lowering import needs_realized_inputs, user_lowerings
    except ImportError:
        return False
    for op in OPS:
        user_lowerings[getattr(library.ops, op).default] = partial(_lower, op, autotune_custom_op, _lower_single_impl)
    user_lowerings[library.ops.conv2d_statistics.default] = partial(_lower_statistics, _lower_single_impl)
    # Otherwise each of the two gradients gets a copy of the one that both read.
    needs_realized_inputs.update(getattr(library.ops, op).default for op in (*OPS, "conv2d_statistics"))
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
    if names == ("band",) and not config.max_autotune:
        nodes, given = _without_casts(op, nodes, given)
    ways = [_implementation(op, name) for name in names]
    if config.max_autotune:
        overload = getattr(library.ops, op).default
        return autotune(f"gconv_{op}", ways, nodes, [given] * len(ways), overload)[0]
    return inline(ways[0], {}, given, nodes, f"gconv_{op}")


def _lower_statistics(inline: Callable[..., Any], *arguments: Any) -> Any:
    """Return the nodes of result, mean and variance by the operator's own choice; None to keep the op as one call.

    After a kernel that does not count what it writes, the statistics fuse with their neighbours.
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
    kernel = find(names[0])
    if names == ("band",):
        nodes, _ = _without_casts("conv2d", nodes, {})

    def way(x: Tensor, weight: Tensor, bias: Tensor | None = None, **cut: Any) -> tuple[Tensor, ...]:
        given = x, weight, bias, library._geometry([cut[name] for name in GEOMETRY_ARGUMENTS])
        if _has_epilogue(kernel):
            y, *statistics = kernel.conv2d_statistics(*given)
        else:
            y = kernel.conv2d(*given)
            statistics = mean_and_variance(y)
        return y.contiguous(memory_format=library._layout(x, weight)), *statistics

    given = dict(zip(GEOMETRY_ARGUMENTS, numbers, strict=True))
    return inline(way, {}, given, nodes, "gconv_conv2d_statistics")


def _without_casts(op: str, nodes: list[Any], given: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Return nodes and arguments of the band kernel without casts of parameters, as mixed precision makes them.

    It casts weight and bias as it reads them, and writes the gradient of a weight in the dtype that is wanted.
    """
    from torch._inductor.virtualized import V

    cast, same = torch.ops.prims.convert_element_type.default, torch.ops.aten.alias.default
    node: Any = V.graph.current_node
    if op == "weight_gradient":
        if len(node.users) != 1:
            return nodes, given
        (user,) = node.users
        if user.target not in (cast, same) or user.meta["val"].dtype != torch.float32:
            return nodes, given
        user.target, user.args = same, (node,)
        return nodes, {**given, "dtype": torch.float32}
    stored = list(nodes)
    for at, argument in enumerate(node.args[1 : len(nodes)], 1):
        if argument.target is cast and argument.args[0].op == "placeholder":
            stored[at] = V.graph.graph_inputs[argument.args[0].target]
    return stored, given


def candidates(
    op: str, geometry: Geometry, tensors: list[Tensor], numbers: tuple[Any, ...], all_of_them: bool
) -> tuple[str, ...]:
    """Return the names of the kernels that Inductor may use instead of a call: all that can, or the chosen one."""
    x, device = tensors[0], tensors[0].device
    inlined = [kernel.name for kernel in KERNELS.values() if device.type in kernel.inlined_on]
    input_size = numbers[6] if op == "input_gradient" else tensors[op == "weight_gradient"].shape[2:]
    name = dispatch.forced(geometry, x.dtype, device)
    if all_of_them and name is None:
        able = (name for name in inlined if refusal(name, geometry, x.dtype, device) is None)
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
        geometry = library._geometry([cut.pop(name) for name in GEOMETRY_ARGUMENTS])
        module, options = find(kernel), cut
        if op == "weight_gradient":
            return module.weight_gradient(first, second, geometry, **options).contiguous()
        if op == "input_gradient":
            result = module.input_gradient(first, second, geometry, tuple(input_size))
        elif activation == "relu" and not _has_epilogue(module):
            result = module.conv2d(first, second, bias, geometry).relu()  # which fuses with the operations that follow
        else:
            result = module.conv2d(first, second, bias, geometry, activation)
        return result.contiguous(memory_format=library._layout(first, second))

    way.__name__ = f"{op}_{kernel}"
    return way


def _has_epilogue(kernel: ModuleType) -> bool:
    """Return True if a kernel applies the ReLU, and counts the statistics of its result, before it writes."""
    return hasattr(kernel, "conv2d_statistics")
