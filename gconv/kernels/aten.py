"""One uniform grouped convolution and its two gradients, as ATen computes them: what all but ``band`` is made of.

Legend: N batch, C input channels, O output channels, H W space, K kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gconv.geometry import Geometry


def convolve(x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, groups: int) -> Tensor:
    """``F.conv2d`` with the stride, padding and dilation of a geometry."""
    return F.conv2d(x_NCHW, weight, bias, geometry.stride, geometry.padding, geometry.dilation, groups)


def activate(y: Tensor, activation: str) -> Tensor:
    """The epilogue, in place: ``y`` is fresh, and its own derivative does not read it."""
    return y.relu_() if activation == "relu" else y


def is_channels_last(x_NCHW: Tensor) -> bool:
    """Whether F.conv2d would put out channels_last: channels are innermost, rows of them side by side."""
    _, c, h, w = x_NCHW.stride()
    return c == 1 and 1 < x_NCHW.shape[1] <= w <= h


def input_gradient(
    dy_NOHW: Tensor, weight: Tensor, geometry: Geometry, groups: int, input_size: Sequence[int]
) -> Tensor:
    """Gradient with respect to the input of ``convolve``."""
    shape = (dy_NOHW.shape[0], weight.shape[1] * groups, *input_size)
    layout = torch.channels_last if is_channels_last(dy_NOHW) else torch.contiguous_format
    # ATen reads its shape and layout alone.
    x = torch.empty(shape, dtype=dy_NOHW.dtype, device=dy_NOHW.device, memory_format=layout)
    return _backward(dy_NOHW, x, weight, geometry, groups, 0)


def weight_gradient(
    dy_NOHW: Tensor, x_NCHW: Tensor, geometry: Geometry, groups: int, weight_shape: Sequence[int]
) -> Tensor:
    """Gradient with respect to the weight of ``convolve``."""
    return _backward(dy_NOHW, x_NCHW, x_NCHW.new_empty(weight_shape), geometry, groups, 1)


def _backward(dy: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, groups: int, which: int) -> Tensor:
    gradients = torch.ops.aten.convolution_backward.default(
        *(dy, x, weight, None, geometry.stride, geometry.padding, geometry.dilation, False, (0, 0), groups),
        [which == 0, which == 1, False],
    )
    return gradients[which]
