"""The definition, in float64: patches times weights, group by group. Every other kernel is tested against it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gconv.geometry import Geometry


def conv2d(x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Grouped convolution by ``unfold`` and matrix products; returns float64 (N, O, H', W')."""
    x = x_NCHW.double()
    height, width = (
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, p, d, k, s in zip(
            x.shape[2:], geometry.padding, geometry.dilation, geometry.kernel_size, geometry.stride, strict=True
        )
    )
    outputs = []
    for x_g, weight_g in zip(
        x.split(list(geometry.in_groups.sizes), dim=1), geometry.group_weights(weight.double()), strict=True
    ):
        patches_NPL = F.unfold(x_g, geometry.kernel_size, geometry.dilation, geometry.padding, geometry.stride)
        outputs.append((weight_g.flatten(1) @ patches_NPL).unflatten(2, (height, width)))
    y = torch.cat(outputs, dim=1)
    return y if bias is None else y + bias.double().view(1, -1, 1, 1)
