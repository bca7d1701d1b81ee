"""One dense convolution whose weight is zero between groups: all the arithmetic, one launch, no copy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from gconv.kernels import packed
from gconv.kernels.geometry import Geometry
from gconv.kernels.packing import Packing


def conv2d(x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str = "none") -> Tensor:
    """Grouped convolution as a dense one."""
    return packed.convolve(x_NCHW, weight, bias, _recipe(geometry), activation)


def input_gradient(dy_NOHW: Tensor, weight: Tensor, geometry: Geometry, input_size: Sequence[int]) -> Tensor:
    """Gradient with respect to the input."""
    return packed.convolve_input_gradient(dy_NOHW, weight, _recipe(geometry), input_size)


def weight_gradient(dy_NOHW: Tensor, x_NCHW: Tensor, geometry: Geometry) -> Tensor:
    """Gradient with respect to the weight."""
    return packed.convolve_weight_gradient(dy_NOHW, x_NCHW, _recipe(geometry))


def refuses(geometry: Geometry, dtype: torch.dtype, device: torch.device | str) -> str | None:
    """Nothing."""
    return None


@lru_cache(maxsize=1024)
def _recipe(geometry: Geometry) -> packed.Recipe:
    one_bin = Packing(((0, geometry.groups),), geometry.in_groups.channels, geometry.out_groups.channels)
    return packed.Recipe.of(geometry, (one_bin,))
