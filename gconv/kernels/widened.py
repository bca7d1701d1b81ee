"""16-bit layers computed by the fp32 kernel of the same layer, and rounded once at the end.

Used on CPUs without 16-bit arithmetic, where oneDNN emulates bf16 three to four times slower than it computes fp32
(an AVX-512 Xeon without AVX512-BF16), and ATen computes fp16 slower still.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gconv.kernels.choose import kernel_for
from gconv.kernels.geometry import Geometry


def conv2d(x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str = "none") -> Tensor:
    """Compute the forward pass in fp32."""
    kernel = kernel_for("conv2d", geometry, torch.float32, x_NCHW, x_NCHW.shape[2:])
    bias = None if bias is None else bias.float()
    return kernel.conv2d(x_NCHW.float(), weight.float(), bias, geometry, activation).to(x_NCHW.dtype)


def input_gradient(dy_NOHW: Tensor, weight: Tensor, geometry: Geometry, input_size: Sequence[int]) -> Tensor:
    """Compute the gradient of the input in fp32."""
    kernel = kernel_for("input_gradient", geometry, torch.float32, dy_NOHW, input_size)
    return kernel.input_gradient(dy_NOHW.float(), weight.float(), geometry, input_size).to(dy_NOHW.dtype)


def weight_gradient(dy_NOHW: Tensor, x_NCHW: Tensor, geometry: Geometry) -> Tensor:
    """Compute the gradient of the weight in fp32."""
    kernel = kernel_for("weight_gradient", geometry, torch.float32, x_NCHW, x_NCHW.shape[2:])
    return kernel.weight_gradient(dy_NOHW.float(), x_NCHW.float(), geometry).to(x_NCHW.dtype)


def refuses(geometry: Geometry, dtype: torch.dtype, device: torch.device | str) -> str | None:
    """Refuse all dtypes that do not have 16 bits."""
    return None if dtype in (torch.bfloat16, torch.float16) else f"{dtype} is no 16-bit type"
