"""Reference in float64: patches times weights, group by group. Every other kernel is tested against it.

Legend: N batch, C input channels, O output channels, H W space, P the C·Kh·Kw elements of a patch, L positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gconv.kernels.geometry import Geometry


def conv2d(x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str = "none") -> Tensor:
    """Compute the forward pass by ``unfold`` and matrix products, float64 (N, O, H', W')."""
    x = x_NCHW.double()
    outputs = [
        weight_g.flatten(1) @ _patches(x_g, geometry)
        for x_g, weight_g in zip(
            x.split(list(geometry.in_groups.sizes), dim=1), geometry.group_weights(weight.double()), strict=True
        )
    ]
    y = torch.cat(outputs, dim=1).unflatten(2, geometry.output_size(x.shape[2:]))
    y = y if bias is None else y + bias.double().view(1, -1, 1, 1)
    return y.relu() if activation == "relu" else y


def input_gradient(dy_NOHW: Tensor, weight: Tensor, geometry: Geometry, input_size: Sequence[int]) -> Tensor:
    """Compute the gradient of the input: that of every output added to its patch, float64 (N, C, H, W)."""
    gradients = [
        F.fold(weight_g.flatten(1).T @ dy_g, tuple(input_size), *_window(geometry))
        for dy_g, weight_g in zip(
            dy_NOHW.double().flatten(2).split(list(geometry.out_groups.sizes), dim=1),
            geometry.group_weights(weight.double()),
            strict=True,
        )
    ]
    return torch.cat(gradients, dim=1)


def weight_gradient(dy_NOHW: Tensor, x_NCHW: Tensor, geometry: Geometry) -> Tensor:
    """Compute the gradient of the weight: gradients of outputs times patches, float64 of ``geometry.weight_shape``."""
    gradients = [
        torch.einsum("nol,npl->op", dy_g, _patches(x_g, geometry)).flatten()
        for dy_g, x_g in zip(
            dy_NOHW.double().flatten(2).split(list(geometry.out_groups.sizes), dim=1),
            x_NCHW.double().split(list(geometry.in_groups.sizes), dim=1),
            strict=True,
        )
    ]
    return torch.cat(gradients).view(geometry.weight_shape)


def refuses(geometry: Geometry, dtype: torch.dtype, device: torch.device | str) -> str | None:
    """Refuse nothing."""
    return None


def _window(geometry: Geometry) -> tuple[tuple[int, int], ...]:
    return geometry.kernel_size, geometry.dilation, geometry.padding, geometry.stride


def _patches(x_NCHW: Tensor, geometry: Geometry) -> Tensor:
    """Return the patches, (N, P, L)."""
    return F.unfold(x_NCHW, *_window(geometry))
