"""Equal neighbours merged into one call each, and narrow ones packed into a dense call of at most 16 channels.

A convolution of 4 or 8 channels cannot fill the vector units of a CPU; several of them in one, with zeros between
them, cost less than one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from gconv.kernels import packed
from gconv.kernels.geometry import Geometry
from gconv.kernels.packing import narrow_neighbours


def conv2d(x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str = "none") -> Tensor:
    """Grouped convolution as uniform ones, the narrow groups as a dense one."""
    return packed.convolve(x_NCHW, weight, bias, _recipe(geometry), activation)


def input_gradient(dy_NOHW: Tensor, weight: Tensor, geometry: Geometry, input_size: Sequence[int]) -> Tensor:
    """Gradient with respect to the input."""
    return packed.convolve_input_gradient(dy_NOHW, weight, _recipe(geometry), input_size)


def weight_gradient(dy_NOHW: Tensor, x_NCHW: Tensor, geometry: Geometry) -> Tensor:
    """Gradient with respect to the weight."""
    return packed.convolve_weight_gradient(dy_NOHW, x_NCHW, _recipe(geometry))


def refuses(geometry: Geometry, dtype: torch.dtype, device_type: str) -> str | None:
    """Equal groups, and those of which no two neighbours are narrow."""
    if geometry.is_uniform:
        return "all groups are equal"
    return None if _recipe(geometry).has_zeros else "no narrow groups are neighbours"


@lru_cache(maxsize=1024)
def _recipe(geometry: Geometry) -> packed.Recipe:
    return packed.Recipe.of(geometry, narrow_neighbours(geometry.in_groups.sizes, geometry.out_groups.sizes))
