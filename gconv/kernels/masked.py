"""One dense convolution whose weight is zero between groups: all the arithmetic, one launch, no copy."""

from torch import Tensor

from gconv.geometry import Geometry
from gconv.kernels.packed import conv2d_packed
from gconv.packing import Packing


def conv2d(x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Grouped convolution as a dense one: a packing with a single bin."""
    packing = Packing(((0, geometry.groups),), geometry.in_groups.channels, geometry.out_groups.channels)
    return conv2d_packed(x_NCHW, weight, bias, geometry, packing)
