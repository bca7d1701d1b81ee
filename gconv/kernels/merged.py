"""Equal groups merged into one call each: no zeros are multiplied, and log groups need a call less than a loop.

Neighbours of one size are a slice of channels, which is copied once and kept for the backward pass. Where that leaves
many calls, groups are first sorted by size, so that there is one call per size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from gconv.kernels.decomposition import DecomposedKernel
from gconv.kernels.geometry import Geometry, geometry_of
from gconv.kernels.packing import equal_neighbours

MAX_UNSORTED_CALLS = 16  # with more calls than these, sorting the groups costs less
KERNEL = DecomposedKernel(equal_neighbours)


def conv2d(x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str = "none") -> Tensor:
    """Return the forward pass, (N, O, H', W')."""
    order = sorted_groups(geometry)
    if order is None:
        return KERNEL.conv2d(x_NCHW, weight, bias, geometry, activation)
    x, weight = order.inputs.sort(x_NCHW, 1), order.links.sort(weight, 0)
    bias = None if bias is None else order.outputs.sort(bias, 0)
    return order.outputs.restore(KERNEL.conv2d(x, weight, bias, order.geometry, activation), 1)


def input_gradient(dy_NOHW: Tensor, weight: Tensor, geometry: Geometry, input_size: Sequence[int]) -> Tensor:
    """Return the gradient of the input, (N, C, H, W)."""
    order = sorted_groups(geometry)
    if order is None:
        return KERNEL.input_gradient(dy_NOHW, weight, geometry, input_size)
    dy, weight = order.outputs.sort(dy_NOHW, 1), order.links.sort(weight, 0)
    return order.inputs.restore(KERNEL.input_gradient(dy, weight, order.geometry, input_size), 1)


def weight_gradient(dy_NOHW: Tensor, x_NCHW: Tensor, geometry: Geometry) -> Tensor:
    """Return the gradient of the weight, of ``geometry.weight_shape``."""
    order = sorted_groups(geometry)
    if order is None:
        return KERNEL.weight_gradient(dy_NOHW, x_NCHW, geometry)
    dy, x = order.outputs.sort(dy_NOHW, 1), order.inputs.sort(x_NCHW, 1)
    return order.links.restore(KERNEL.weight_gradient(dy, x, order.geometry), 0)


def refuses(geometry: Geometry, dtype: torch.dtype, device: torch.device | str) -> str | None:
    """Refuse equal groups, which ``native`` computes in one call."""
    return "all groups are equal" if geometry.is_uniform else None


@dataclass(frozen=True)
class SortedDimension:
    """One dimension of a tensor split by group, and the order in which the groups are sorted."""

    sizes: list[int]
    order: list[int]

    def sort(self, t: Tensor, dim: int) -> Tensor:
        """Return ``t`` with the slices of the groups in the sorted order."""
        parts = t.split(self.sizes, dim)
        return torch.cat([parts[g] for g in self.order], dim)

    def restore(self, t: Tensor, dim: int) -> Tensor:
        """Return ``t`` with the slices in the original order again."""
        parts = dict(zip(self.order, t.split([self.sizes[g] for g in self.order], dim), strict=True))
        return torch.cat([parts[g] for g in range(len(parts))], dim)


@dataclass(frozen=True)
class SortedGroups:
    """The groups of a geometry sorted by size, and the geometry of the sorted ones."""

    inputs: SortedDimension
    outputs: SortedDimension
    links: SortedDimension
    geometry: Geometry


@lru_cache(maxsize=1024)
def sorted_groups(geometry: Geometry) -> SortedGroups | None:
    """Return the groups sorted by size; None where few calls are needed without sorting."""
    if len(KERNEL.decompose(geometry).calls) <= MAX_UNSORTED_CALLS:
        return None
    in_sizes, out_sizes = geometry.in_groups.sizes, geometry.out_groups.sizes
    order = sorted(range(geometry.groups), key=lambda g: (-in_sizes[g], -out_sizes[g]))
    sorted_in, sorted_out = tuple(in_sizes[g] for g in order), tuple(out_sizes[g] for g in order)
    window = geometry.stride, geometry.padding, geometry.dilation
    inputs, outputs, links = (SortedDimension(list(sizes), order) for sizes in (in_sizes, out_sizes, geometry.links))
    return SortedGroups(inputs, outputs, links, geometry_of(sorted_in, sorted_out, geometry.kernel_size, *window))
