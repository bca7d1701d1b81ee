"""Equal neighbours merged into one call each, and narrow ones packed into a dense call of at most 16 channels.

A convolution of 4 or 8 channels cannot fill the vector units of a CPU. Several of them in one call, with zeros between
them, cost less than one after the other.
"""

from __future__ import annotations

import torch

from gconv.kernels.decomposition import DecomposedKernel
from gconv.kernels.geometry import Geometry
from gconv.kernels.packing import narrow_neighbours

KERNEL = DecomposedKernel(narrow_neighbours)
conv2d, input_gradient, weight_gradient = KERNEL.conv2d, KERNEL.input_gradient, KERNEL.weight_gradient


def refuses(geometry: Geometry, dtype: torch.dtype, device: torch.device | str) -> str | None:
    """Refuse equal groups, and those of which no two neighbours are narrow."""
    if geometry.is_uniform:
        return "all groups are equal"
    return None if KERNEL.decompose(geometry).has_zeros else "no narrow groups are neighbours"
