"""ATen's own grouped convolution: uniform groups only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gconv.kernels import aten, inference_weights
from gconv.kernels.geometry import Geometry

KEPT_BYTES = 1 << 19  # least size of a weight that is kept in the layout of oneDNN; a small one is converted at once


def conv2d(x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str = "none") -> Tensor:
    """Compute the forward pass by one ``F.conv2d`` with ``groups=G``.

    In inference on one image a large weight is kept in the layout of oneDNN, which ATen would convert it to in each
    pass. The bits are the same.
    """
    if type(weight) is nn.Parameter and is_kept(x_NCHW.shape[0], geometry, weight.dtype):
        weight = _in_layout_of_onednn(x_NCHW, weight, bias, geometry)
    return aten.convolve(x_NCHW, weight, bias, geometry, geometry.groups, activation)


def input_gradient(dy_NOHW: Tensor, weight: Tensor, geometry: Geometry, input_size: Sequence[int]) -> Tensor:
    """Compute the gradient of the input, (N, C, H, W)."""
    return aten.input_gradient(dy_NOHW, weight, geometry, geometry.groups, input_size)


def weight_gradient(dy_NOHW: Tensor, x_NCHW: Tensor, geometry: Geometry) -> Tensor:
    """Compute the gradient of the weight."""
    return aten.weight_gradient(dy_NOHW, x_NCHW, geometry, geometry.groups, geometry.weight_shape)


def is_kept(images: int, geometry: Geometry, dtype: torch.dtype) -> bool:
    """Return True if a weight may be kept in the layout of oneDNN: of several groups, large, used on one image."""
    return images == 1 and geometry.groups > 1 and geometry.numbers * dtype.itemsize >= KEPT_BYTES


def _in_layout_of_onednn(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Return the weight in the layout of oneDNN, if it may be kept and ATen would use oneDNN; else as it is."""
    if not (inference_weights.may_be_kept(weight, x, bias, geometry) and aten.is_channels_last(x)):
        return weight
    size = (x.shape[0], x.shape[2], x.shape[3])
    if aten.use_of_onednn(geometry, geometry.groups, tuple(weight.shape), x.dtype, size) != "by ATen":
        return weight

    def make(keep: bool) -> inference_weights.Weights:
        return (aten.pack(weight, geometry, geometry.groups, size) if keep else weight,)

    (kept,) = inference_weights.kept(weight, ("native", geometry), make)
    return kept


def refuses(geometry: Geometry, dtype: torch.dtype, device: torch.device | str) -> str | None:
    """Refuse unequal groups."""
    if geometry.is_uniform:
        return None
    return f"it needs equal groups, not {geometry.in_groups} -> {geometry.out_groups}"
