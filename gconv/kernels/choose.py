"""Which kernel computes a layer.

Equal groups go to ATen's own grouped convolution. Uneven ones are packed into one call, except in fp32 on a CPU: there
a convolution is bound by arithmetic, so that the zeros of a packing cost more than the calls of a loop, unless a group
is so narrow that a convolution of its own cannot fill the vector units. (Measured forward + backward, two AVX-512
cores, batch 64, loop / packed: 64 channels log:3 43 / 50 ms, log:5 81 / 57; 128 log:5 38 / 44; 256 log:5 41 / 49.)
"""

import torch

from gconv.geometry import Geometry

NARROW = 8  # input channels of a group


def choose(geometry: Geometry, dtype: torch.dtype, device: str) -> str:
    """Name of the kernel for a layer of this geometry computed in ``dtype`` on a ``device`` type."""
    if geometry.is_uniform:
        return "native"
    if device == "meta":  # nothing is computed, costs are counted: the loop multiplies connected channels alone
        return "loop"
    if device == "cpu" and dtype not in (torch.bfloat16, torch.float16) and min(geometry.in_groups.sizes) >= NARROW:
        return "loop"
    return "packed"
