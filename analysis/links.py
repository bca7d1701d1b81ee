"""Links of a layer: the inputs that each output is computed from, in the channels and in space.

A convolution links every output channel to the channels of its group, and every output pixel to the pixels under its
kernel. Each pair of a channel link and a pixel link is one multiplication, so the number of links is the cost:
multiply-accumulates = channel links × pixel links ("Why MobileNet and its variants are fast", yu4u).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from gconv.conv import CONVOLUTIONS, cuts
from gconv.shuffle import ChannelPermutation, ChannelShuffle

Link = tuple[int, int]  # input, output


def channel_links(layer: nn.Module) -> list[Link]:
    """Return the pairs (input channel, output channel) that a layer connects, by output channel.

    Args:
        layer: a convolution, or a shuffle or permutation of channels, which links every output to the one it takes.

    Raises:
        ValueError: any other layer.
    """
    if isinstance(layer, CONVOLUTIONS):
        inputs, outputs = cuts(layer)
        members = [range(start, start + size) for start, size in zip(inputs.starts, inputs.sizes, strict=True)]
        return [(channel, out) for out, group in enumerate(outputs.labels) for channel in members[group]]
    channels = _moved_channels(layer)
    numbers = layer(torch.arange(channels).view(1, channels, 1, 1)).flatten().tolist()
    return [(channel, out) for out, channel in enumerate(numbers)]


def spatial_links(layer: nn.Module, size: int, axis: int = 1) -> list[Link]:
    """Return the pairs (input pixel, output pixel) that a layer connects along one axis, by output pixel.

    Args:
        layer: as in ``channel_links``; a shuffle or permutation leaves pixels where they are.
        size: pixels of the input along the axis.
        axis: 0 down the height, 1 along the width.

    Returns:
        Kernel-size pairs for each output pixel. With zero padding the inputs -1, -2, … and ``size``, ``size`` + 1, …
        are padding; with any other padding mode every input is the pixel that was copied.

    Raises:
        ValueError: an unknown layer; an image smaller than the kernel.
    """
    if not isinstance(layer, CONVOLUTIONS):
        _moved_channels(layer)
        return [(pixel, pixel) for pixel in range(size)]
    kernel, stride, dilation = layer.kernel_size[axis], layer.stride[axis], layer.dilation[axis]
    reach = dilation * (kernel - 1)
    if layer.padding == "same":
        before, after = reach // 2, reach - reach // 2
    else:
        before = after = 0 if isinstance(layer.padding, str) else layer.padding[axis]
    if layer.padding_mode == "zeros":
        padded = list(range(-before, size + after))
    else:
        pixels = torch.arange(size, dtype=torch.float64).view(1, 1, size)
        padded = [round(pixel) for pixel in F.pad(pixels, (before, after), mode=layer.padding_mode).flatten().tolist()]
    if len(padded) <= reach:
        raise ValueError(f"{size} pixels, {len(padded)} when padded: the kernel covers {reach + 1}")
    starts = range(0, len(padded) - reach, stride)
    return [(padded[start + k * dilation], out) for out, start in enumerate(starts) for k in range(kernel)]


def count_macs(layer: nn.Module, height: int, width: int) -> int:
    """Return the multiply-accumulates for one image, without biases: channel links × pixel links down × along.

    A layer that only moves channels multiplies nothing and costs 0.
    """
    if not isinstance(layer, CONVOLUTIONS):
        return 0
    return len(channel_links(layer)) * len(spatial_links(layer, height, 0)) * len(spatial_links(layer, width, 1))


def inputs_seen(steps: list[list[Link]], output: int) -> list[set[int]]:
    """Return the units that one output of a stack of layers depends on, row by row from the first inputs on.

    Args:
        steps: the links of each layer, the first layer first.
        output: index of the output of the last layer.
    """
    rows = [{output}]
    for links in reversed(steps):
        rows.insert(0, {source for source, out in links if out in rows[0]})
    return rows


def _moved_channels(layer: nn.Module) -> int:
    """Return the number of channels of a layer that only moves them."""
    if isinstance(layer, ChannelShuffle):
        return layer.partition.channels
    if isinstance(layer, ChannelPermutation):
        return len(layer.order)
    raise ValueError(
        f"{type(layer).__name__}: its links are unknown; known are Conv2d, GroupedConv2d, ChannelShuffle and "
        "ChannelPermutation"
    )
