"""One call for the widest group, and one for the groups on each side of it, packed: few zeros are multiplied.

Logarithmic groups need 1/4 + 2/16 = 0.375 of the dense products (ideal for five groups: 0.336; packed in one: 0.5).
"""

from __future__ import annotations

import torch

from gconv.kernels.decomposition import DecomposedKernel
from gconv.kernels.geometry import Geometry
from gconv.kernels.packing import nested_packings

KERNEL = DecomposedKernel(nested_packings)
conv2d, input_gradient, weight_gradient = KERNEL.conv2d, KERNEL.input_gradient, KERNEL.weight_gradient


def refuses(geometry: Geometry, dtype: torch.dtype, device: torch.device | str) -> str | None:
    """Refuse equal groups: none is the widest."""
    return "all groups are equally wide" if geometry.is_uniform else None
