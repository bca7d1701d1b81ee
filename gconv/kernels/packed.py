"""Uneven groups packed into one uniform grouped convolution, exactly.

Inside a bin the weight is block-diagonal: the blocks are the groups' weights, the rest is zero and stays zero, so the
result is that of the groups alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from gconv.geometry import Geometry
from gconv.packing import Packing


def conv2d(x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Grouped convolution as one uniform one with the fewest multiplications."""
    return conv2d_packed(x_NCHW, weight, bias, geometry, geometry.packing)


def conv2d_packed(x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, packing: Packing) -> Tensor:
    """Grouped convolution as one uniform one, packed as told."""
    in_fill = [sum(geometry.in_groups.sizes[a:b]) for a, b in packing.bins]
    out_fill = [sum(geometry.out_groups.sizes[a:b]) for a, b in packing.bins]
    y = F.conv2d(
        _pad_bins(x_NCHW, in_fill, packing.in_capacity, dim=1),
        _block_diagonal(weight, geometry, packing),
        None if bias is None else _pad_bins(bias, out_fill, packing.out_capacity, dim=0),
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        len(packing.bins),
    )
    if all(fill == packing.out_capacity for fill in out_fill):
        return y
    return torch.cat([y_b[:, :fill] for y_b, fill in zip(y.split(packing.out_capacity, 1), out_fill, strict=True)], 1)


def _pad_bins(x: Tensor, fill: list[int], capacity: int, dim: int) -> Tensor:
    """Append zero channels to every bin that is not full."""
    if all(size == capacity for size in fill):
        return x
    after = (0, 0) * (x.dim() - 1 - dim)
    return torch.cat(
        [F.pad(part, (*after, 0, capacity - size)) for part, size in zip(x.split(fill, dim), fill, strict=True)], dim
    )


def _block_diagonal(weight: Tensor, geometry: Geometry, packing: Packing) -> Tensor:
    """(bins · out_capacity, in_capacity, Kh, Kw): each group's weight in its place, zeros elsewhere."""
    views = geometry.group_weights(weight)
    rows = []
    for first, last in packing.bins:
        before, height = 0, 0
        for group in range(first, last):
            out_size, in_size = geometry.out_groups.sizes[group], geometry.in_groups.sizes[group]
            height += out_size
            spare_rows = packing.out_capacity - height if group == last - 1 else 0
            after = packing.in_capacity - before - in_size
            rows.append(F.pad(views[group], (0, 0, 0, 0, before, after, 0, spare_rows)))
            before += in_size
    return torch.cat(rows)
