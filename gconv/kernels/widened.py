"""16-bit numbers through the fp32 kernel of the same layer, rounded once at the end.

For CPUs that have no 16-bit arithmetic, where oneDNN emulates bf16 three to four times slower than it computes fp32
(an AVX-512 Xeon without AVX512-BF16), and ATen computes fp16 slower still.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from gconv.kernels import find
from gconv.kernels.aten import is_channels_last
from gconv.kernels.geometry import Geometry


def conv2d(x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str = "none") -> Tensor:
    """Grouped convolution in fp32 of 16-bit numbers."""
    kernel = _kernel("conv2d", geometry, x_NCHW, x_NCHW.shape[2:])
    bias = None if bias is None else bias.float()
    return kernel.conv2d(x_NCHW.float(), weight.float(), bias, geometry, activation).to(x_NCHW.dtype)


def input_gradient(dy_NOHW: Tensor, weight: Tensor, geometry: Geometry, input_size: Sequence[int]) -> Tensor:
    """Gradient with respect to the input."""
    kernel = _kernel("input_gradient", geometry, dy_NOHW, input_size)
    return kernel.input_gradient(dy_NOHW.float(), weight.float(), geometry, input_size).to(dy_NOHW.dtype)


def weight_gradient(dy_NOHW: Tensor, x_NCHW: Tensor, geometry: Geometry) -> Tensor:
    """Gradient with respect to the weight."""
    kernel = _kernel("weight_gradient", geometry, x_NCHW, x_NCHW.shape[2:])
    return kernel.weight_gradient(dy_NOHW.float(), x_NCHW.float(), geometry).to(x_NCHW.dtype)


def refuses(geometry: Geometry, dtype: torch.dtype, device: torch.device | str) -> str | None:
    """Whatever is no 16-bit number."""
    return None if dtype in (torch.bfloat16, torch.float16) else f"{dtype} is no 16-bit type"


def _kernel(op: str, geometry: Geometry, like: Tensor, size: Sequence[int]) -> ModuleType:
    from gconv.kernels.choose import choose, pixel_bits  # which in turn may choose this kernel

    bits = pixel_bits(like.shape[0], *size)
    return find(choose(op, geometry, torch.float32, like.device, is_channels_last(like), bits).kernel)
