"""All groups packed into one uniform grouped convolution, the one with the fewest multiplications."""

from __future__ import annotations

import torch

from gconv.kernels.decomposition import DecomposedKernel
from gconv.kernels.geometry import Geometry
from gconv.kernels.packing import one_packing

KERNEL = DecomposedKernel(one_packing)
conv2d, input_gradient, weight_gradient = KERNEL.conv2d, KERNEL.input_gradient, KERNEL.weight_gradient


def refuses(geometry: Geometry, dtype: torch.dtype, device: torch.device | str) -> str | None:
    """Refuse nothing."""
    return None
