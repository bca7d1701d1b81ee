"""Layers that several architectures share."""

from __future__ import annotations

from typing import Literal, TypeVar

from torch import nn

from gconv import Block, GroupedConv2d

Groups = int | str | list[int] | tuple[int, ...]
Norm = Literal["batch", "local", "none"]
Model = TypeVar("Model", bound=nn.Module)


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
    """Return a convolution, a batch normalisation if ``norm="batch"``, and a ReLU; before a norm there is no bias."""
    conv = GroupedConv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=norm != "batch")
    normalise = [nn.BatchNorm2d(out_channels)] if norm == "batch" else []
    return [conv, *normalise, nn.ReLU(inplace=True)]


def conv_norm(in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1, groups: Groups = 1) -> Block:
    """Return a convolution without a bias and its batch normalisation; only the stride reduces height and width."""
    return Block(
        GroupedConv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    )


def he_initialise(model: Model) -> Model:
    """Draw the weights of all convolutions as He et al. 2015 (arXiv 1502.01852), each group by its own fan-in.

    Biases become 0. The model is changed in place and returned.
    """
    for module in model.modules():
        if not isinstance(module, GroupedConv2d | nn.Conv2d):
            continue
        weights = [module.weight]
        if isinstance(module, GroupedConv2d) and not module.geometry.is_uniform:
            weights = module.group_weights()
        for weight in weights:
            nn.init.kaiming_normal_(weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    return model
