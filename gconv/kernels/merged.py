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

from gconv.kernels import packed
from gconv.kernels.geometry import Geometry, geometry_of
from gconv.kernels.packing import equal_neighbours

MANY = 16  # calls beyond which sorting the groups costs less


def conv2d(x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str = "none") -> Tensor:
    """Grouped convolution as one uniform one per run of equal groups."""
    order = _order(geometry)
    if order is None:
        return packed.convolve(x_NCHW, weight, bias, _recipe(geometry), activation)
    x, weight = order.inputs.sort(x_NCHW, 1), order.links.sort(weight, 0)
    bias = None if bias is None else order.outputs.sort(bias, 0)
    return order.outputs.restore(packed.convolve(x, weight, bias, order.recipe, activation), 1)


def input_gradient(dy_NOHW: Tensor, weight: Tensor, geometry: Geometry, input_size: Sequence[int]) -> Tensor:
    """Gradient with respect to the input."""
    order = _order(geometry)
    if order is None:
        return packed.convolve_input_gradient(dy_NOHW, weight, _recipe(geometry), input_size)
    dy, weight = order.outputs.sort(dy_NOHW, 1), order.links.sort(weight, 0)
    return order.inputs.restore(packed.convolve_input_gradient(dy, weight, order.recipe, input_size), 1)


def weight_gradient(dy_NOHW: Tensor, x_NCHW: Tensor, geometry: Geometry) -> Tensor:
    """Gradient with respect to the weight."""
    order = _order(geometry)
    if order is None:
        return packed.convolve_weight_gradient(dy_NOHW, x_NCHW, _recipe(geometry))
    dy, x = order.outputs.sort(dy_NOHW, 1), order.inputs.sort(x_NCHW, 1)
    return order.links.restore(packed.convolve_weight_gradient(dy, x, order.recipe), 0)


def refuses(geometry: Geometry, dtype: torch.dtype, device_type: str) -> str | None:
    """Equal groups, which ``native`` computes in one call."""
    return "all groups are equal" if geometry.is_uniform else None


@lru_cache(maxsize=1024)
def _recipe(geometry: Geometry) -> packed.Recipe:
    return packed.Recipe.of(geometry, equal_neighbours(geometry.in_groups.sizes, geometry.out_groups.sizes))


@dataclass(frozen=True)
class Sizes:
    """What each group has of one dimension, and the order in which groups are sorted."""

    sizes: list[int]
    order: list[int]

    def sort(self, t: Tensor, dim: int) -> Tensor:
        """Put the parts of the groups in the new order."""
        parts = t.split(self.sizes, dim)
        return torch.cat([parts[g] for g in self.order], dim)

    def restore(self, t: Tensor, dim: int) -> Tensor:
        """Put them back."""
        parts = dict(zip(self.order, t.split([self.sizes[g] for g in self.order], dim), strict=True))
        return torch.cat([parts[g] for g in range(len(parts))], dim)


@dataclass(frozen=True)
class Order:
    """The groups of a geometry sorted by size, and the recipe of the sorted ones."""

    inputs: Sizes
    outputs: Sizes
    links: Sizes
    recipe: packed.Recipe


@lru_cache(maxsize=1024)
def _order(geometry: Geometry) -> Order | None:
    """None where few calls are needed as it is."""
    if len(_recipe(geometry).calls) <= MANY:
        return None
    in_sizes, out_sizes = geometry.in_groups.sizes, geometry.out_groups.sizes
    order = sorted(range(geometry.groups), key=lambda g: (-in_sizes[g], -out_sizes[g]))
    sorted_sizes = tuple(in_sizes[g] for g in order), tuple(out_sizes[g] for g in order)
    window = geometry.stride, geometry.padding, geometry.dilation
    recipe = _recipe(geometry_of(sorted_sizes[0], sorted_sizes[1], geometry.kernel_size, *window))
    return Order(
        Sizes(list(in_sizes), order), Sizes(list(out_sizes), order), Sizes(list(geometry.links), order), recipe
    )
