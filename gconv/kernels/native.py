"""ATen's own grouped convolution: uniform groups only."""

import torch.nn.functional as F
from torch import Tensor

from gconv.geometry import Geometry


def conv2d(x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """One ``F.conv2d`` with ``groups=G``.

    Raises:
        ValueError: the groups have unequal sizes.
    """
    if not geometry.is_uniform:
        raise ValueError(
            f"kernel 'native' needs equal groups, not {geometry.in_groups} -> {geometry.out_groups}; "
            "'loop', 'packed' and 'masked' take any"
        )
    return F.conv2d(x_NCHW, weight, bias, geometry.stride, geometry.padding, geometry.dilation, geometry.groups)
