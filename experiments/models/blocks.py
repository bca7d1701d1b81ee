"""The pieces that several architectures share."""

from __future__ import annotations

from typing import Literal

from torch import nn

from gconv import GroupedConv2d

Groups = int | str | list[int]
Norm = Literal["batch", "local", "none"]


def conv_norm_relu(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: Groups = 1,
    norm: Norm = "batch",
) -> list[nn.Module]:
    """Convolution, batch normalisation if asked for (then without a bias), ReLU."""
    conv = GroupedConv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=norm != "batch")
    normalise = [nn.BatchNorm2d(out_channels)] if norm == "batch" else []
    return [conv, *normalise, nn.ReLU(inplace=True)]
