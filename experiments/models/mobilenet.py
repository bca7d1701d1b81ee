"""MobileNet v1 (Howard et al. 2017, arXiv 1704.04861): a depthwise 3×3 convolution, then a 1×1, thirteen times.

A depthwise convolution is the extreme of grouping, one group per channel. ``spatial`` makes it any other: a few groups,
logarithmic ones, or the full convolution that the paper compares with, which needs no 1×1 after it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import nn

from experiments.models.blocks import Groups, conv_norm_relu, he_initialise
from gconv import Block

# Output channels and stride of each of the thirteen pairs (the paper's table 1).
PAIRS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]


def mobilenet(
    classes: int = 1000,
    spatial: Literal["depthwise", "full"] | Groups = "depthwise",
    pointwise: Groups = 1,
    multiplier: float = 1.0,
    stem: Literal["imagenet", "cifar"] = "imagenet",
) -> nn.Module:
    """Build MobileNet v1; the defaults are the published 1.0 MobileNet-224.

    Args:
        classes: number of outputs.
        spatial: groups of the 3×3 convolutions: ``depthwise``, or any partition. ``full`` replaces each pair by one
            full 3×3 convolution (the paper's table 4).
        pointwise: groups of the 1×1 convolutions.
        multiplier: factor of all widths, rounded to whole channels.
        stem: ``imagenet``: the first convolution has stride 2; ``cifar``: it has stride 1.

    Returns:
        A module from (N, 3, H, W) to (N, classes).

    Raises:
        ValueError: groups that cannot cut the channels; a multiplier that leaves no channel.
    """
    if not 1 / 64 <= multiplier <= 64:
        raise ValueError(f"multiplier={multiplier}: must be from 1/64 to 64")
    if isinstance(spatial, str) and spatial.isalpha() and spatial not in ("depthwise", "full"):
        raise ValueError(f"spatial={spatial}: must be depthwise, full, or a partition such as 4 or log:4")
    if spatial == "full" and pointwise != 1:
        raise ValueError(f"pointwise={pointwise}: with spatial=full there are no 1×1 convolutions to cut")
    channels = max(1, round(32 * multiplier))
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = Block(*conv_norm_relu(3, channels, 3, stride=2 if stem == "imagenet" else 1, padding=1))
    for number, (base, stride) in enumerate(PAIRS, 1):
        width = max(1, round(base * multiplier))
        if spatial == "full":
            layers[f"full{number}"] = Block(*conv_norm_relu(channels, width, 3, stride=stride, padding=1))
        else:
            groups = channels if spatial == "depthwise" else spatial
            cut = conv_norm_relu(channels, channels, 3, stride=stride, padding=1, groups=groups)
            layers[f"spatial{number}"] = Block(*cut)
            layers[f"pointwise{number}"] = Block(*conv_norm_relu(channels, width, 1, groups=pointwise))
        channels = width
    layers.update(average=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), classify=nn.Linear(channels, classes))
    return he_initialise(nn.Sequential(layers))
