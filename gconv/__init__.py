"""Grouped convolution in torch, with groups of any sizes: uniform, logarithmic, arbitrary."""

from gconv.block import Block, run_block
from gconv.conv import GroupedConv2d
from gconv.explanation import explain
from gconv.fusion import fuse
from gconv.operator.ops import forced_kernel, grouped_conv2d
from gconv.partition import Partition
from gconv.regroup import regroup
from gconv.shuffle import ChannelPermutation, ChannelShuffle, channel_shuffle
from gconv.tuning import TuneReport, tune

__version__ = "0.1.0"

__all__ = [
    "Block",
    "ChannelPermutation",
    "ChannelShuffle",
    "GroupedConv2d",
    "Partition",
    "TuneReport",
    "__version__",
    "channel_shuffle",
    "explain",
    "forced_kernel",
    "fuse",
    "grouped_conv2d",
    "regroup",
    "run_block",
    "tune",
]
