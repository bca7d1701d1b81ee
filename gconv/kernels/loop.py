"""One dense convolution per group: split, convolve, concatenate. No arithmetic wasted, G launches and a copy."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gconv.geometry import Geometry


def conv2d(x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Grouped convolution as G dense ones."""
    inputs = x_NCHW.split(list(geometry.in_groups.sizes), dim=1)
    weights = geometry.group_weights(weight)
    biases = [None] * geometry.groups if bias is None else bias.split(list(geometry.out_groups.sizes))
    return torch.cat(
        [
            F.conv2d(x_g, weight_g, bias_g, geometry.stride, geometry.padding, geometry.dilation)
            for x_g, weight_g, bias_g in zip(inputs, weights, biases, strict=True)
        ],
        dim=1,
    )
