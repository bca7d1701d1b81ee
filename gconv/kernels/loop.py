"""One dense convolution per group: split, convolve, concatenate. No arithmetic wasted, G launches and a copy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gconv.kernels import aten
from gconv.kernels.geometry import Geometry


def conv2d(x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str = "none") -> Tensor:
    """Compute the forward pass, (N, O, H', W'), by G dense convolutions."""
    inputs = x_NCHW.split(list(geometry.in_groups.sizes), dim=1)
    weights = geometry.group_weights(weight)
    biases = [None] * geometry.groups if bias is None else bias.split(list(geometry.out_groups.sizes))
    outputs = [
        aten.convolve(x_g, weight_g, bias_g, geometry, 1, activation)
        for x_g, weight_g, bias_g in zip(inputs, weights, biases, strict=True)
    ]
    return torch.cat(outputs, dim=1)


def input_gradient(dy_NOHW: Tensor, weight: Tensor, geometry: Geometry, input_size: Sequence[int]) -> Tensor:
    """Compute the gradient of the input, (N, C, H, W), group by group."""
    parts = dy_NOHW.split(list(geometry.out_groups.sizes), dim=1)
    weights = geometry.group_weights(weight)
    gradients = [
        aten.input_gradient(dy_g, weight_g, geometry, 1, input_size)
        for dy_g, weight_g in zip(parts, weights, strict=True)
    ]
    return torch.cat(gradients, dim=1)


def weight_gradient(dy_NOHW: Tensor, x_NCHW: Tensor, geometry: Geometry) -> Tensor:
    """Compute the gradient of the weight, group by group."""
    outputs = dy_NOHW.split(list(geometry.out_groups.sizes), dim=1)
    inputs = x_NCHW.split(list(geometry.in_groups.sizes), dim=1)
    gradients = [
        aten.weight_gradient(dy_g, x_g, geometry, 1, (dy_g.shape[1], x_g.shape[1], *geometry.kernel_size))
        for dy_g, x_g in zip(outputs, inputs, strict=True)
    ]
    if geometry.is_uniform:
        return torch.cat(gradients)
    return torch.cat([gradient.flatten(0, 1) for gradient in gradients])


def refuses(geometry: Geometry, dtype: torch.dtype, device: torch.device | str) -> str | None:
    """Refuse nothing."""
    return None
