"""ATen's own grouped convolution: uniform groups only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gconv.kernels import aten
from gconv.kernels.geometry import Geometry


def conv2d(x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str = "none") -> Tensor:
    """Compute the forward pass by one ``F.conv2d`` with ``groups=G``."""
    return aten.convolve(x_NCHW, weight, bias, geometry, geometry.groups, activation)


def input_gradient(dy_NOHW: Tensor, weight: Tensor, geometry: Geometry, input_size: Sequence[int]) -> Tensor:
    """Compute the gradient of the input, (N, C, H, W)."""
    return aten.input_gradient(dy_NOHW, weight, geometry, geometry.groups, input_size)


def weight_gradient(dy_NOHW: Tensor, x_NCHW: Tensor, geometry: Geometry) -> Tensor:
    """Compute the gradient of the weight."""
    return aten.weight_gradient(dy_NOHW, x_NCHW, geometry, geometry.groups, geometry.weight_shape)


def refuses(geometry: Geometry, dtype: torch.dtype, device: torch.device | str) -> str | None:
    """Refuse unequal groups."""
    if geometry.is_uniform:
        return None
    return f"it needs equal groups, not {geometry.in_groups} -> {geometry.out_groups}"
