"""One uniform grouped convolution and its two gradients, computed by ATen: the basis of all kernels but ``band``.

Legend: N batch, C input channels, O output channels, H W space, K kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from gconv.kernels.geometry import Geometry
from gconv.kernels.machine import computes

# ATen's name for oneDNN, if torch is built with it.
ONEDNN: Any = torch._C._ConvBackend.Mkldnn if hasattr(torch.ops.mkldnn, "_convolution_pointwise") else None  # pyright: ignore[reportAttributeAccessIssue]
MACS_FOR_ONEDNN = 2e6  # MACs of one image above which oneDNN with a packed weight is faster than ATen's kernel


def convolve(
    x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, groups: int, activation: str = "none"
) -> Tensor:
    """Compute ``F.conv2d`` with the stride, padding and dilation of a geometry, then the activation.

    Args:
        x_NCHW, weight, bias, groups: as in ``F.conv2d``; a weight may be one of ``pack``.
        geometry: stride, padding and dilation.
        activation: ``none`` or ``relu``.
    """
    window = geometry.stride, geometry.padding, geometry.dilation
    if weight.is_mkldnn or (activation == "relu" and _in_onednn(x_NCHW, weight, bias, window, groups)):
        # It accepts slices of channels without a copy, and is slow with them.
        last = weight.is_mkldnn or is_channels_last(x_NCHW)
        x = x_NCHW.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        call = torch.ops.mkldnn._convolution_pointwise.default
        stride, padding, dilation = window
        return call(x, weight, bias, padding, stride, dilation, groups, activation, [], "")
    return activate(F.conv2d(x_NCHW, weight, bias, *window, groups), activation)


def use_of_onednn(
    geometry: Geometry, groups: int, weight_shape: tuple[int, ...], dtype: torch.dtype, size: tuple[int, int, int]
) -> str:
    """Return the reason to compute a channels_last convolution on a CPU with a weight of ``pack``, in inference.

    Args:
        geometry, groups: as in ``convolve``.
        weight_shape: (O, C/G, Kh, Kw).
        dtype: dtype of all tensors.
        size: (N, H, W) of the input.

    Returns:
        ``by ATen`` if ATen takes oneDNN too, so that a packed weight saves its conversion and changes no bits;
        ``packed`` if ATen takes another library, which is slower; else ``no``. Several groups with several images are
        slower with a packed weight.
    """
    state = torch.get_num_threads(), torch.backends.mkldnn.enabled
    return _use_of_onednn(geometry, groups, weight_shape, dtype, size, state)


@lru_cache(maxsize=4096)
def _use_of_onednn(
    geometry: Geometry,
    groups: int,
    weight_shape: tuple[int, ...],
    dtype: torch.dtype,
    size: tuple[int, int, int],
    state: tuple[int, bool],
) -> str:
    if not (state[1] and ONEDNN) or min(geometry.output_size(size[1:])) < 1:
        return "no"
    if dtype != torch.float32 and not (dtype == torch.bfloat16 and computes(dtype)):
        return "no"
    window = geometry.stride, geometry.padding, geometry.dilation
    x = torch.empty((size[0], weight_shape[1] * groups, *size[1:]), dtype=dtype)
    weight = torch.empty(weight_shape, dtype=dtype)
    if torch._C._select_conv_backend(x, weight, None, *window, False, (0, 0), groups) == ONEDNN:
        return "by ATen" if groups == 1 or size[0] == 1 else "no"
    macs = size[0] * math.prod(geometry.output_size(size[1:])) * weight.numel()
    return "packed" if geometry.kernel_size != (1, 1) and macs >= MACS_FOR_ONEDNN else "no"


def pack(weight: Tensor, geometry: Geometry, groups: int, size: tuple[int, int, int]) -> Tensor:
    """Return a weight in the layout of oneDNN, for ``convolve``: fastest for inputs of one (N, H, W), right for all."""
    shape = [size[0], weight.shape[1] * groups, *size[1:]]
    window = geometry.padding, geometry.stride, geometry.dilation
    # oneDNN has fast code for channels_last only.
    weight = weight.contiguous(memory_format=torch.channels_last)
    return torch.ops.mkldnn._reorder_convolution_weight(weight, *window, groups, shape)


def _in_onednn(x: Tensor, weight: Tensor, bias: Tensor | None, window: tuple[Any, Any, Any], groups: int) -> bool:
    """Return True if ATen would use oneDNN, whose op applies the ReLU before it writes, and nothing is differentiated.

    That op has no rules for derivatives, transforms and modes.
    """
    if x.device.type != "cpu" or not ONEDNN or forward_ad._current_level >= 0:
        return False
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return False
    if torch._C._are_functorch_transforms_active() or torch._C._len_torch_dispatch_stack():
        return False
    return torch._C._select_conv_backend(x, weight, bias, *window, False, (0, 0), groups) == ONEDNN


def is_plain(x: Tensor) -> bool:
    """Return True if Python may read and keep the values of a tensor: on a CPU, outside of modes and transforms."""
    if x.device.type != "cpu" or type(x) not in (Tensor, torch.nn.Parameter) or forward_ad._current_level >= 0:
        return False
    traced = torch._C._is_tracing() or torch._C._len_torch_dispatch_stack()
    return not (traced or torch._C._are_functorch_transforms_active())


def is_finite(x: Tensor) -> bool:
    """Return True if a tensor has neither infinities nor NaN, or if its values may not be read.

    Their sum is checked, at the speed of memory. Finite numbers whose sum overflows count as infinite.
    """
    if not is_plain(x):
        return True
    wide = torch.float32 if x.dtype == torch.float16 else None  # float16 sums overflow early
    return math.isfinite(x.detach().sum(dtype=wide).item())


def activate(y: Tensor, activation: str) -> Tensor:
    """Apply the activation in place: ``y`` is new, and the derivative of the convolution does not read it."""
    return y.relu_() if activation == "relu" else y


def mean_and_variance(y_NOHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance (O,) of every channel, in float64 where ``y_NOHW`` is, else in float32."""
    wide = y_NOHW if y_NOHW.dtype == torch.float64 else y_NOHW.float()
    var, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
    return mean, var


def is_channels_last(x_NCHW: Tensor) -> bool:
    """Return True if F.conv2d would return channels_last: channels innermost, then columns, then rows."""
    _, c, h, w = x_NCHW.stride()
    last = c == 1 and 1 < x_NCHW.shape[1] <= w <= h
    return last if isinstance(last, bool) else _is_known(last)


def _is_known(condition: torch.SymBool) -> bool:
    """Return True if a condition holds for every size of a traced program, without adding a guard."""
    from torch.fx.experimental.symbolic_shapes import guard_or_false  # imports the symbolic algebra

    return guard_or_false(condition)


def input_gradient(
    dy_NOHW: Tensor, weight: Tensor, geometry: Geometry, groups: int, input_size: Sequence[int]
) -> Tensor:
    """Compute the gradient of the input of ``convolve``."""
    shape = (dy_NOHW.shape[0], weight.shape[1] * groups, *input_size)
    layout = torch.channels_last if is_channels_last(dy_NOHW) else torch.contiguous_format
    # ATen reads only its shape and layout.
    x = torch.empty(shape, dtype=dy_NOHW.dtype, device=dy_NOHW.device, memory_format=layout)
    return _backward(dy_NOHW, x, weight, geometry, groups, 0)


def weight_gradient(
    dy_NOHW: Tensor, x_NCHW: Tensor, geometry: Geometry, groups: int, weight_shape: Sequence[int]
) -> Tensor:
    """Compute the gradient of the weight of ``convolve``."""
    return _backward(dy_NOHW, x_NCHW, x_NCHW.new_empty(weight_shape), geometry, groups, 1)


def _backward(dy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, groups: int, which: int) -> Tensor:
    return gradients(dy, x, weight, geometry, groups, (which == 0, which == 1, False))[which]


def empty_weight(x_NCHW: Tensor, geometry: Geometry) -> Tensor:
    """Return an empty weight in the memory format of images, as ``.to(memory_format=…)`` of a layer gives it."""
    layout = torch.channels_last if is_channels_last(x_NCHW) else torch.contiguous_format
    place = {"dtype": x_NCHW.dtype, "device": x_NCHW.device, "memory_format": layout}
    if geometry.is_uniform:
        return torch.empty(geometry.weight_shape, **place)
    return torch.empty((1, *geometry.weight_shape), **place).squeeze(0)


def gradients(
    dy_NOHW: Tensor, x_NCHW: Tensor, weight: Tensor, geometry: Geometry, groups: int, needed: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of input, weight and bias of ``convolve``, those that are needed."""
    window = geometry.stride, geometry.padding, geometry.dilation
    bias_sizes = [weight.shape[0]] if needed[2] else None
    given = dy_NOHW, x_NCHW, weight, bias_sizes, *window, False, (0, 0), groups, needed
    return torch.ops.aten.convolution_backward.default(*given)
