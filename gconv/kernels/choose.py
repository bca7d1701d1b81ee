"""Which kernel computes a layer.

Equal groups go to ATen. For uneven ones the packed convolution wins wherever the matrix units are fast (bf16 on AMX,
GPUs) and, in fp32, wherever packing adds little arithmetic or the groups are narrow; otherwise the loop does.
`make bench` measures them side by side.
"""

import torch

from gconv.geometry import Geometry

# Above this many input channels a fp32 convolution is bound by arithmetic on a CPU, and zeros are no longer free.
NARROW = 128


def choose(geometry: Geometry, dtype: torch.dtype) -> str:
    """Name of the kernel for a layer of this geometry computed in ``dtype``."""
    if geometry.is_uniform:
        return "native"
    if dtype in (torch.bfloat16, torch.float16) or geometry.in_groups.channels <= NARROW:
        return "packed"
    return "packed" if geometry.packing.links <= 1.1 * sum(geometry.links) else "loop"
