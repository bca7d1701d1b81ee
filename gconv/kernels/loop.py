"""One dense convolution per group: split, convolve, concatenate. No arithmetic wasted, G launches and a copy."""

from __future__ import annotations

import torch

from gconv.kernels.decomposition import SEPARATE as KERNEL
from gconv.kernels.geometry import Geometry

conv2d, input_gradient, weight_gradient = KERNEL.conv2d, KERNEL.input_gradient, KERNEL.weight_gradient


def refuses(geometry: Geometry, dtype: torch.dtype, device: torch.device | str) -> str | None:
    """Refuse nothing."""
    return None
