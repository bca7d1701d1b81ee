"""The operator: grouped 2-D convolution with groups of any sizes.

The kernels are called in three ways:

- If one ATen kernel computes a whole training step, torch differentiates it.
- If each op has its own kernel, an autograd function combines them.
- A program traced by ``torch.compile`` contains the ops of torch's library (``library.py``), into which Inductor looks
  (``inductor.py``). Equal groups that ATen computes anyway become ATen's convolution, which compilers optimise.

An exported or traced program contains ATen's convolutions only, and does not need this package. Exported with the band
kernel forced, which is not in ATen, it contains the ops of the library, which choose their kernel where the program
runs.
``torch.func`` gets ATen's convolutions, which it can transform.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.compiler import is_compiling, is_exporting

from gconv.kernels.geometry import Geometry
from gconv.operator import autograd, dispatch, inductor, library
from gconv.operator.autocast import cast
from gconv.operator.dispatch import forced_kernel, kernels_for, transformable_kernels
from gconv.operator.library import InputError
from gconv.operator.sharding import is_distributed, register_sharding_rules

__all__ = ["forced_kernel", "grouped_conv2d"]

ACTIVATIONS = ("none", "relu")


def grouped_conv2d(
    x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str = "none"
) -> Tensor:
    """Convolve input group g with the weights of group g, for every g.

    Args:
        x_NCHW: (N, C, H, W) with C = ``geometry.in_groups.channels``; any floating dtype, layout and device.
        weight: tensor of shape ``geometry.weight_shape``.
        bias: (O,) or None.
        activation: applied inside the operator: ``"none"`` or ``"relu"``.

    Returns:
        (N, O, H', W'), channels_last where the input is; differentiable any number of times.

    Raises:
        InputError: arguments that do not fit the geometry or each other. It is a ``RuntimeError``, as torch raises, and
            a ``ValueError``.
        ValueError: an unknown activation; a forced kernel that cannot compute the layer.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r}: must be one of {', '.join(ACTIVATIONS)}")
    if is_compiling():
        return _traced(x_NCHW, weight, bias, geometry, activation)
    if torch._C._is_tracing() and dispatch.forced_name() is None:  # by torch.jit, whose program runs anywhere
        return as_aten_convolutions(x_NCHW, weight, bias, geometry, activation)
    if torch._C._is_any_autocast_enabled():
        x_NCHW, weight, bias = cast(x_NCHW, weight, bias, once=True)
    dispatch.show_layer(x_NCHW, weight, geometry)
    if x_NCHW.dtype != weight.dtype or (bias is not None and bias.dtype != weight.dtype):
        raise InputError(library.argument_error(x_NCHW, weight, bias, geometry))
    if is_distributed(weight):
        register_sharding_rules()
        return library.conv2d(x_NCHW, weight, bias, geometry, activation)
    try:
        return _conv2d(x_NCHW, weight, bias, geometry, activation)
    except (RuntimeError, IndexError, ValueError) as error:
        argument_error = library.argument_error(x_NCHW, weight, bias, geometry)
        if argument_error is None:
            raise
        raise InputError(argument_error) from error


def as_aten_convolutions(
    x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str = "none"
) -> Tensor:
    """Compute ``grouped_conv2d`` by ATen alone: one convolution if groups are equal, else one per group.

    The input may lack the batch, as that of ``F.conv2d``: a program that is traced without sizes takes both.
    """
    window = geometry.stride, geometry.padding, geometry.dilation
    if geometry.is_uniform:
        y = F.conv2d(x_NCHW, weight, bias, *window, geometry.groups)
        return F.relu(y) if activation == "relu" else y
    parts, first = [], [0, 0, 0]
    for in_size, out_size, links in zip(
        geometry.in_groups.sizes, geometry.out_groups.sizes, geometry.links, strict=True
    ):
        x_g, weight_g = x_NCHW.narrow(-3, first[0], in_size), weight.narrow(0, first[2], links)
        bias_g = None if bias is None else bias.narrow(0, first[1], out_size)
        parts.append(F.conv2d(x_g, weight_g.view(out_size, in_size, *geometry.kernel_size), bias_g, *window))
        first = [first[0] + in_size, first[1] + out_size, first[2] + links]
    y = torch.cat(parts, -3)
    return F.relu(y) if activation == "relu" else y


def _traced(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str) -> Tensor:
    """Return the layer as a compiler or an exporter traces it."""
    # A compiler cannot transform the library's op.
    exported = is_exporting()
    if (exported and dispatch.forced_name() != "band") or torch._C._are_functorch_transforms_active():
        return as_aten_convolutions(x, weight, bias, geometry, activation)
    x, weight, bias = cast(x, weight, bias)
    # An exported program runs elsewhere: no kernel is chosen for it here.
    if not exported and geometry.is_uniform and dispatch.is_left_to_compiler(geometry, x.dtype, x.device):
        return as_aten_convolutions(x, weight, bias, geometry, activation)
    inductor.register_if_loaded()
    return library.conv2d(x, weight, bias, geometry, activation)


def conv2d_statistics(
    x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the convolution, and mean and biased variance of each output channel, for the norm that follows.

    Args:
        x_NCHW, weight, bias, geometry: as in ``grouped_conv2d``.

    Returns:
        y (N, O, H', W') as in ``grouped_conv2d``; mean and variance (O,) over N, H' and W', float32 or float64, NaN
        for an empty batch. All are differentiable.
    """
    x_NCHW, weight, bias = cast(x_NCHW, weight, bias)
    return library.conv2d_statistics(x_NCHW, weight, bias, geometry)


def _records_gradient(*tensors: Tensor | None) -> bool:
    """Return True if autograd records a call with these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str = "none") -> Tensor:
    plain = x.is_complex() or torch._C._are_functorch_transforms_active()
    kernels = transformable_kernels(geometry) if plain else kernels_for(x, geometry, x.shape[2:])
    if kernels.together is not None and torch.is_grad_enabled():
        return kernels.together(x, weight, bias, geometry, activation)
    if not _records_gradient(x, weight, bias):
        return kernels.conv2d(x, weight, bias, geometry, activation)
    return _Conv2d.apply(x, weight, bias, geometry, activation)


def _input_gradient(dy: Tensor, weight: Tensor, geometry: Geometry, input_size: Sequence[int]) -> Tensor:
    if _records_gradient(dy, weight):
        return _InputGradient.apply(dy, weight, geometry, input_size)
    return dispatch.input_gradient(dy, weight, geometry, input_size)


def _weight_gradient(dy: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
    if _records_gradient(dy, x):
        return _WeightGradient.apply(dy, x, geometry)
    return dispatch.weight_gradient(dy, x, geometry)


EAGER = autograd.Ops(_conv2d, _input_gradient, _weight_gradient)


class _Conv2d(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str
    ) -> Tensor:
        y = dispatch.conv2d(x, weight, bias, geometry, activation)
        autograd.save(ctx, (x, weight), geometry, y if activation == "relu" else None)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return *autograd.of_conv2d(EAGER, ctx, dy), None, None


class _InputGradient(Function):
    @staticmethod
    def forward(ctx: Any, dy: Tensor, weight: Tensor, geometry: Geometry, input_size: Sequence[int]) -> Tensor:
        autograd.save(ctx, (dy, weight), geometry)
        return dispatch.input_gradient(dy, weight, geometry, input_size)

    @staticmethod
    def backward(ctx: Any, ddx: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return *autograd.of_input_gradient(EAGER, ctx, ddx), None, None


class _WeightGradient(Function):
    @staticmethod
    def forward(ctx: Any, dy: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
        autograd.save(ctx, (dy, x), geometry)
        return dispatch.weight_gradient(dy, x, geometry)

    @staticmethod
    def backward(ctx: Any, ddw: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return *autograd.of_weight_gradient(EAGER, ctx, ddw), None
