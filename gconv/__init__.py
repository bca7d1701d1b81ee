"""Grouped convolution in torch, with groups of any sizes: uniform, logarithmic, arbitrary."""

from gconv.conv import GroupedConv2d
from gconv.ops import forced_kernel, grouped_conv2d
from gconv.partition import Partition
from gconv.shuffle import ChannelPermutation, ChannelShuffle, channel_shuffle

__all__ = [
    "ChannelPermutation",
    "ChannelShuffle",
    "GroupedConv2d",
    "Partition",
    "channel_shuffle",
    "forced_kernel",
    "grouped_conv2d",
]
