"""The ops in torch's library: ``gconv::conv2d``, ``gconv::input_gradient``, ``gconv::weight_gradient``, and the forward
pass with the statistics of its result, ``gconv::conv2d_statistics``.

Each op is one node of a traced program. So a compiler applies no rule for grouped convolutions to it, and the kernel is
chosen at run time for the actual sizes. Each op registers its implementation, a fake one for tracing, derivatives,
autocast, vmap and the count of FLOPs.

A geometry is passed as plain numbers. ``torch.vmap`` over k weights becomes a grouped convolution with k times as many
groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._library.autograd import Info, make_autograd_impl
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from gconv.kernels.aten import is_channels_last
from gconv.kernels.geometry import Geometry, geometry_of
from gconv.operator import autograd, dispatch
from gconv.operator.autocast import cast

_cut = "int[] in_sizes, int[] out_sizes, int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation"
definitions = torch.library.Library("gconv", "DEF")
definitions.define(f"conv2d(Tensor x, Tensor weight, Tensor? bias, {_cut}, str activation) -> Tensor")
definitions.define(f"conv2d_statistics(Tensor x, Tensor weight, Tensor? bias, {_cut}) -> (Tensor, Tensor, Tensor)")
definitions.define(f"input_gradient(Tensor dy, Tensor weight, {_cut}, SymInt[2] input_size) -> Tensor")
definitions.define(f"weight_gradient(Tensor dy, Tensor x, {_cut}) -> Tensor")
ops = torch.ops.gconv

Pair = tuple[int, int]
Numbers = tuple[list[int], list[int], Pair, Pair, Pair, Pair]


def _numbers(geometry: Geometry) -> Numbers:
    cut = list(geometry.in_groups.sizes), list(geometry.out_groups.sizes)
    return *cut, geometry.kernel_size, geometry.stride, geometry.padding, geometry.dilation


def _geometry(numbers: Sequence[Any]) -> Geometry:
    """Return the geometry of the first six numbers of an op."""
    in_sizes, out_sizes, *window = (tuple(part) for part in numbers[:6])
    return geometry_of(in_sizes, out_sizes, *window)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str = "none") -> Tensor:
    """Compute the forward pass as one op of torch's library."""
    return ops.conv2d.default(x, weight, bias, *_numbers(geometry), activation)


def conv2d_statistics(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the forward pass, and mean and biased variance (O,) of each output channel, at least in fp32."""
    return ops.conv2d_statistics.default(x, weight, bias, *_numbers(geometry))


def input_gradient(dy: Tensor, weight: Tensor, geometry: Geometry, input_size: Sequence[int]) -> Tensor:
    """Compute the gradient of the input as one op of torch's library."""
    return ops.input_gradient.default(dy, weight, *_numbers(geometry), input_size)


def weight_gradient(dy: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
    """Compute the gradient of the weight as one op of torch's library."""
    return ops.weight_gradient.default(dy, x, *_numbers(geometry))


OPS = autograd.Ops(conv2d, input_gradient, weight_gradient)


class InputError(RuntimeError, ValueError):
    """Input, weight and bias that do not fit the layer or each other: a ``RuntimeError``, as torch raises."""


def argument_error(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> str | None:
    """Return one line about wrong arguments of a forward pass; None if they are right."""
    given = f"input of shape {tuple(x.shape)}"
    layer = f"the layer ({geometry})"
    if x.dim() != 4:
        return f"{given}: {layer} takes (N, C, H, W)"
    if x.shape[1] != geometry.in_groups.channels:
        wanted = geometry.in_groups.channels
        return f"{given} has {x.shape[1]} channels; the groups {geometry.in_groups} of {layer} cut {wanted}"
    if tuple(weight.shape) != geometry.weight_shape:
        return f"weight of shape {tuple(weight.shape)}: {layer} needs {geometry.weight_shape}"
    if bias is not None and tuple(bias.shape) != (geometry.out_groups.channels,):
        return f"bias of shape {tuple(bias.shape)}: {layer} needs ({geometry.out_groups.channels},)"
    size = geometry.output_size(x.shape[2:])
    if all(type(s) is int for s in size) and min(size) < 1:  # a symbol of a traced program may be any size
        return f"{given} is smaller than the kernel of {layer} with padding {geometry.padding}: it leaves no output"
    if x.is_quantized:
        return (
            f"input of {x.dtype}: {layer} is not quantised module by module; use torch.export.export(…, strict=True) "
            "and prepare_pt2e, which sees convolutions"
        )
    if not (x.is_floating_point() or x.is_complex()):
        return f"input of {x.dtype}: {layer} takes floating-point numbers (float32, bfloat16, float16, float64)"
    others = [("weight", weight), *([] if bias is None else [("bias", bias)])]
    for name, t in others:
        if t.dtype != x.dtype:
            return f"input of {x.dtype}, {name} of {t.dtype}: {layer} needs one dtype; convert either, or use autocast"
        if t.device != x.device:
            return f"input on {x.device}, {name} on {t.device}: {layer} needs both on one device"
    if x.layout != torch.strided:
        return f"input of layout {x.layout}: {layer} takes dense tensors; convert with .to_dense()"
    return None


def _layout(*tensors: Tensor) -> torch.memory_format:
    """Return the memory format of ATen's result: channels_last if an argument of four dimensions is."""
    last = any(t.dim() == 4 and is_channels_last(t) for t in tensors)
    return torch.channels_last if last else torch.contiguous_format


def _run_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    y = dispatch.conv2d(x, weight, bias, _geometry(rest), rest[6])
    return y.to(x.dtype).contiguous(memory_format=_layout(x, weight))


def _run_conv2d_statistics(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    y, mean, var = dispatch.conv2d_statistics(x, weight, bias, _geometry(rest))
    return y.to(x.dtype).contiguous(memory_format=_layout(x, weight)), mean, var


def _run_input_gradient(dy: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    dx = dispatch.input_gradient(dy, weight, _geometry(rest), rest[6])
    return dx.to(dy.dtype).contiguous(memory_format=_layout(dy, weight))


def _run_weight_gradient(dy: Tensor, x: Tensor, *rest: Any) -> Tensor:
    return dispatch.weight_gradient(dy, x, _geometry(rest)).to(dy.dtype).contiguous()


def _fake_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    geometry = _geometry(rest)
    wrong = argument_error(x, weight, bias, geometry)
    if wrong is not None:
        raise InputError(wrong)
    shape = (x.shape[0], geometry.out_groups.channels, *geometry.output_size(x.shape[2:]))
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_layout(x, weight))


def _fake_conv2d_statistics(
    x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    y = _fake_conv2d(x, weight, bias, *rest)
    mean, var = (y.new_empty(y.shape[1], dtype=torch.promote_types(y.dtype, torch.float32)) for _ in range(2))
    return y, mean, var


def _fake_input_gradient(dy: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    shape = (dy.shape[0], sum(rest[0]), *rest[6])
    return torch.empty(shape, dtype=dy.dtype, device=dy.device, memory_format=_layout(dy, weight))


def _fake_weight_gradient(dy: Tensor, x: Tensor, *rest: Any) -> Tensor:
    return dy.new_empty(_geometry(rest).weight_shape)


def _keep_for_conv2d(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, _, *rest = inputs
    geometry = _geometry(rest)
    autograd.save(ctx, (x, weight), geometry, output if rest[6] == "relu" else None)


def _keep_for_conv2d_statistics(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, _, *rest = inputs
    autograd.save(ctx, (x, weight, *output[:2]), _geometry(rest))


def _keep_for_input_gradient(ctx: Any, inputs: tuple, output: Tensor) -> None:
    dy, weight, *rest = inputs
    autograd.save(ctx, (dy, weight), _geometry(rest))


def _keep_for_weight_gradient(ctx: Any, inputs: tuple, output: Tensor) -> None:
    dy, x, *rest = inputs
    autograd.save(ctx, (dy, x), _geometry(rest))


def _autocast(op: Callable[..., Any]) -> Callable[..., Any]:
    def cast_first(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Any:
        given = cast(x, weight, bias)
        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
            torch._C.DispatchKey.AutocastCUDA
        )
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(*given, *rest)

    return cast_first


def concatenate_channels(x: Tensor, dim: int | None, times: int) -> Tensor:
    """Return k inputs concatenated along channels, (N, k · C, H, W); one input is repeated if ``dim`` is None."""
    x = x.unsqueeze(0).expand(times, *x.shape) if dim is None else x.movedim(dim, 0)
    return x.transpose(0, 1).flatten(1, 2)


def concatenate_parameters(x: Tensor, dim: int | None, times: int) -> Tensor:
    """Return k weights or biases concatenated, (k · O, …); one is repeated if ``dim`` is None."""
    return (x.unsqueeze(0).expand(times, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)


def _batches(x: Tensor, dim: int) -> Tensor:
    """Return k batches as one, (k · N, C, H, W)."""
    return x.movedim(dim, 0).flatten(0, 1)


def _repeat(rest: Sequence[Any], times: int) -> list[Any]:
    return [list(rest[0]) * times, list(rest[1]) * times, *rest[2:]]


def _vmap_conv2d(info: Any, dims: tuple, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Any:
    k = info.batch_size
    if dims[1] is None and dims[2] is None:
        return ops.conv2d.default(_batches(x, dims[0]), weight, bias, *rest).unflatten(0, (k, -1)), 0
    bias = None if bias is None else concatenate_parameters(bias, dims[2], k)
    y = ops.conv2d.default(
        concatenate_channels(x, dims[0], k), concatenate_parameters(weight, dims[1], k), bias, *_repeat(rest, k)
    )
    return y.unflatten(1, (k, -1)), 1


def _vmap_conv2d_statistics(info: Any, dims: tuple, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Any:
    k = info.batch_size
    bias = None if bias is None else concatenate_parameters(bias, dims[2], k)
    y, *statistics = ops.conv2d_statistics.default(
        concatenate_channels(x, dims[0], k), concatenate_parameters(weight, dims[1], k), bias, *_repeat(rest, k)
    )
    return (y.unflatten(1, (k, -1)), *(part.unflatten(0, (k, -1)) for part in statistics)), (1, 0, 0)


def _vmap_input_gradient(info: Any, dims: tuple, dy: Tensor, weight: Tensor, *rest: Any) -> Any:
    k = info.batch_size
    if dims[1] is None:
        return ops.input_gradient.default(_batches(dy, dims[0]), weight, *rest).unflatten(0, (k, -1)), 0
    dx = ops.input_gradient.default(
        concatenate_channels(dy, dims[0], k), concatenate_parameters(weight, dims[1], k), *_repeat(rest, k)
    )
    return dx.unflatten(1, (k, -1)), 1


def _vmap_weight_gradient(info: Any, dims: tuple, dy: Tensor, x: Tensor, *rest: Any) -> Any:
    k = info.batch_size
    dw = ops.weight_gradient.default(
        concatenate_channels(dy, dims[0], k), concatenate_channels(x, dims[1], k), *_repeat(rest, k)
    )
    return dw.unflatten(0, (k, -1)), 0


def _with_tangents(op: Callable[..., Any], tangents_of: Callable, primals: tuple, tangents: tuple) -> Any:
    """Compute an op of dual numbers."""
    output = op(*primals)
    tangent = tangents_of(output, primals, tangents)
    if isinstance(output, Tensor):
        return forward_ad.make_dual(output, tangent)
    return tuple(map(forward_ad.make_dual, output, tangent))


def _bilinear(op: Callable[..., Tensor], first: Sequence[Any], tangents: Sequence[Any], rest: Sequence[Any]) -> Tensor:
    """Return the tangent of an op that is linear in either of two factors."""
    a, b = first
    da, db = tangents
    parts = ([op(da, b, *rest)] if da is not None else []) + ([op(a, db, *rest)] if db is not None else [])
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def _tangent_of_conv2d(output: Tensor, primals: tuple, tangents: tuple) -> Tensor:
    numbers = primals[3:9]
    if tangents[0] is None and tangents[1] is None:
        moved = torch.zeros_like(output)
    else:
        moved = _bilinear(ops.conv2d.default, primals[:2], tangents[:2], (None, *numbers, "none"))
    if tangents[2] is not None:
        moved = moved + tangents[2].view(-1, 1, 1)
    return moved * (output > 0) if primals[9:] == ("relu",) else moved


def _tangents_of_statistics(output: tuple[Tensor, ...], primals: tuple, tangents: tuple) -> tuple[Tensor, ...]:
    y, mean, _ = output
    moved = _tangent_of_conv2d(y, primals, tangents)
    wide = moved.to(mean.dtype)
    return moved, wide.mean((0, 2, 3)), 2 * ((y - mean.view(-1, 1, 1)) * wide).mean((0, 2, 3))


def _flops(output: Sequence[int], numbers: Sequence[Any]) -> int:
    """Return the FLOPs of an op of the library: two for each multiply-accumulate of connected channels.

    Outside of compiled programs a counter sees the calls of the kernel instead, with the zeros that it multiplies.
    """
    batch, _, height, width = output
    return 2 * batch * height * width * math.prod(_geometry(numbers).weight_shape)


def _register(
    name: str,
    run: Callable,
    fake: Callable,
    keep: Callable,
    derivative: Callable,
    vmap: Callable,
    flops: Callable,
    tangents_of: Callable,
) -> None:
    arguments = len(getattr(ops, name).default._schema.arguments)

    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        known = derivative(OPS, ctx, *gradients)
        return *known, *[None] * (arguments - len(known))

    full = f"gconv::{name}"
    op = getattr(ops, name).default
    recorded = make_autograd_impl(op, Info(backward, keep))

    def differentiable(keyset: Any, *given: Any) -> Any:
        if forward_ad._current_level >= 0:
            duals = [forward_ad.unpack_dual(a) if isinstance(a, Tensor) else (a, None) for a in given]
            if any(tangent is not None for _, tangent in duals):
                return _with_tangents(op, tangents_of, *zip(*duals, strict=True))
        return recorded(keyset, *given)

    definitions.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(full, fake, lib=definitions)
    # torch.library.register_autograd knows no forward mode.
    definitions.impl(name, differentiable, "Autograd", with_keyset=True)
    torch.library.register_vmap(full, vmap, lib=definitions)
    register_flop_formula(getattr(ops, name))(flops)


_register(
    *("conv2d", _run_conv2d, _fake_conv2d, _keep_for_conv2d, autograd.of_conv2d, _vmap_conv2d),
    lambda x, weight, bias, *rest, out_shape, **_: _flops(out_shape, rest),
    _tangent_of_conv2d,
)
_register(
    *("conv2d_statistics", _run_conv2d_statistics, _fake_conv2d_statistics, _keep_for_conv2d_statistics),
    *(autograd.of_conv2d_statistics, _vmap_conv2d_statistics),
    lambda x, weight, bias, *rest, out_shape, **_: _flops(out_shape[0], rest),
    _tangents_of_statistics,
)
_register(
    *("input_gradient", _run_input_gradient, _fake_input_gradient, _keep_for_input_gradient),
    *(autograd.of_input_gradient, _vmap_input_gradient),
    lambda dy, weight, *rest, **_: _flops(dy, rest),
    lambda _, primals, tangents: _bilinear(ops.input_gradient.default, primals[:2], tangents[:2], primals[2:]),
)
_register(
    *("weight_gradient", _run_weight_gradient, _fake_weight_gradient, _keep_for_weight_gradient),
    *(autograd.of_weight_gradient, _vmap_weight_gradient),
    lambda dy, x, *rest, **_: _flops(dy, rest),
    lambda _, primals, tangents: _bilinear(ops.weight_gradient.default, primals[:2], tangents[:2], primals[2:]),
)
for _key in ("AutocastCPU", "AutocastCUDA"):
    for _name in ("conv2d", "conv2d_statistics"):
        definitions.impl(_name, _autocast(getattr(ops, _name).default), _key)
