"""GroupedConv2d: a drop-in for ``torch.nn.Conv2d`` whose filter groups may have any sizes."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.common_types import _size_2_t

from gconv.geometry import Geometry
from gconv.ops import grouped_conv2d
from gconv.partition import Partition, Spec

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class GroupedConv2d(nn.Module):
    """2-D convolution in filter groups: input group g feeds output group g, and nothing else.

    Takes what ``nn.Conv2d`` takes. With equal groups the ``state_dict`` is that of ``nn.Conv2d``, and so are the
    initial values under the same seed. With unequal groups ``weight`` has shape (L, Kh, Kw): the weights of all L
    connected channel pairs, group after group; ``group_weights()`` gives them as (O_g, C_g, Kh, Kw) views.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, bias, padding_mode, device, dtype:
            as in ``nn.Conv2d``.
        groups: how the outputs are cut, and the inputs too unless ``in_groups`` is given: anything that
            ``Partition.of`` reads (``4``, ``"log:4"``, ``"32,16,8,8"``, ``"4:2:1:1"``, a Partition).
        in_groups: how the inputs are cut, where they are cut differently.

    Attributes:
        groups: number of groups, an int as in ``nn.Conv2d``.
        geometry: both partitions, kernel size, stride, the padding that the kernel does itself, dilation.

    Raises:
        ValueError: the channels cannot be cut so; an unknown padding; ``padding="same"`` with a stride.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _size_2_t,
        stride: _size_2_t = 1,
        padding: _size_2_t | Literal["same", "valid"] = 0,
        dilation: _size_2_t = 1,
        groups: Spec = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        in_groups: Spec | None = None,
    ) -> None:
        super().__init__()
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode {padding_mode!r}: must be one of {', '.join(PADDING_MODES)}")
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = _pair(kernel_size, "kernel_size")
        self.stride = _pair(stride, "stride")
        self.dilation = _pair(dilation, "dilation")
        self.padding = padding if isinstance(padding, str) else _pair(padding, "padding", least=0)
        self.padding_mode = padding_mode
        sides = self._padding_sides()
        symmetric = sides[0] == sides[1] and sides[2] == sides[3]
        inside = padding_mode == "zeros" and symmetric
        # Padding in F.pad's order (left, right, top, bottom) where the kernel cannot do it itself.
        self._pad_first = None if inside else sides
        self.geometry = Geometry(
            _cut(groups if in_groups is None else in_groups, in_channels, "in_channels"),
            _cut(groups, out_channels, "out_channels"),
            self.kernel_size,
            self.stride,
            (sides[2], sides[0]) if inside else (0, 0),
            self.dilation,
        )
        self.groups = self.geometry.groups
        self.weight = nn.Parameter(torch.empty(self.geometry.weight_shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def _padding_sides(self) -> tuple[int, int, int, int]:
        if self.padding == "valid":
            return (0, 0, 0, 0)
        if self.padding == "same":
            if self.stride != (1, 1):
                raise ValueError(f"padding='same' needs stride 1, not {self.stride}")
            (top, bottom), (left, right) = (
                (d * (k - 1) // 2, d * (k - 1) - d * (k - 1) // 2)
                for d, k in zip(self.dilation, self.kernel_size, strict=True)
            )
            return (left, right, top, bottom)
        if isinstance(self.padding, str):
            raise ValueError(f"padding {self.padding!r}: must be 'same', 'valid' or numbers")
        height, width = self.padding
        return (width, width, height, height)

    def reset_parameters(self) -> None:
        """Initialise as ``nn.Conv2d`` does, each group by its own fan-in: uniform in ±1/√(C_g·Kh·Kw)."""
        for weight in [self.weight] if self.geometry.is_uniform else self.group_weights():
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        if self.bias is not None:
            in_sizes, out_sizes = self.geometry.in_groups.sizes, self.geometry.out_groups.sizes
            if self.geometry.is_uniform:  # one draw, as nn.Conv2d makes it
                in_sizes, out_sizes = in_sizes[:1], (self.out_channels,)
            for bias, in_size in zip(self.bias.split(list(out_sizes)), in_sizes, strict=True):
                bound = 1 / math.sqrt(in_size * self.kernel_size[0] * self.kernel_size[1])
                nn.init.uniform_(bias, -bound, bound)

    def group_weights(self) -> list[Tensor]:
        """Views of the weight, one of shape (O_g, C_g, Kh, Kw) per group."""
        return self.geometry.group_weights(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, O, H', W'), or (C, H, W) to (O, H', W')."""
        if x.dim() != 4:
            if x.dim() != 3:
                raise ValueError(f"input of shape {tuple(x.shape)}: GroupedConv2d takes (N, C, H, W) or (C, H, W)")
            return self.forward(x.unsqueeze(0)).squeeze(0)
        if self._pad_first is not None:
            x = F.pad(x, self._pad_first, mode="constant" if self.padding_mode == "zeros" else self.padding_mode)
        return grouped_conv2d(x, self.weight, self.bias, self.geometry)

    def extra_repr(self) -> str:
        """What ``print(layer)`` shows."""
        cut = str(self.geometry.out_groups)
        if str(self.geometry.in_groups) != cut:
            cut = f"{self.geometry.in_groups} -> {cut}"
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        text += f", padding={self.padding!r}, groups={cut}"
        text += "" if self.dilation == (1, 1) else f", dilation={self.dilation}"
        text += "" if self.bias is not None else ", bias=False"
        return text + ("" if self.padding_mode == "zeros" else f", padding_mode={self.padding_mode!r}")


def _pair(value: _size_2_t, name: str, least: int = 1) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or any(not isinstance(v, int) or v < least for v in pair):
        raise ValueError(f"{name} must be one or two whole numbers of at least {least}, not {value!r}")
    return pair


def _cut(spec: Spec, channels: int, name: str) -> Partition:
    try:
        return Partition.of(spec, channels)
    except ValueError as error:
        raise ValueError(f"{name}={channels}, groups={spec}: {error}") from None
