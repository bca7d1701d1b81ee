"""16-bit numbers through the fp32 kernel of the same layer, rounded once at the end.

For CPUs that have no 16-bit arithmetic, where oneDNN emulates bf16 three to four times slower than it computes fp32
(an AVX-512 Xeon without AVX512-BF16), and ATen computes fp16 slower still.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gconv.kernels.choose import kernel_for
from gconv.kernels.geometry import Geometry


def conv2d(x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str = "none") -> Tensor:
    """Grouped convolution in fp32 of 16-bit numbers."""
    kernel = kernel_for("conv2d", geometry, torch.float32, x_NCHW, x_NCHW.shape[2:])
    bias = None if bias is None else bias.float()
    return kernel.conv2d(x_NCHW.float(), weight.float(), bias, geometry, activation).to(x_NCHW.dtype)


def input_gradient(dy_NOHW: Tensor, weight: Tensor, geometry: Geometry, input_size: Sequence[int]) -> Tensor:
    """Gradient with respect to the input."""
    kernel = kernel_for("input_gradient", geometry, torch.float32, dy_NOHW, input_size)
    return kernel.input_gradient(dy_NOHW.float(), weight.float(), geometry, input_size).to(dy_NOHW.dtype)


def weight_gradient(dy_NOHW: Tensor, x_NCHW: Tensor, geometry: Geometry) -> Tensor:
    """Gradient with respect to the weight."""
    kernel = kernel_for("weight_gradient", geometry, torch.float32, x_NCHW, x_NCHW.shape[2:])
    return kernel.weight_gradient(dy_NOHW.float(), x_NCHW.float(), geometry).to(x_NCHW.dtype)


def refuses(geometry: Geometry, dtype: torch.dtype, device: torch.device | str) -> str | None:
    """Whatever is no 16-bit number."""
    return None if dtype in (torch.bfloat16, torch.float16) else f"{dtype} is no 16-bit type"
