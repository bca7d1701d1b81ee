"""ShuffleNet v1 (Zhang et al. 2018, arXiv 1707.01083): grouped 1×1 convolutions with a channel shuffle between them.

With more groups the same cost pays for more channels: 144, 200, 240, 272 and 384 leave the first stage at 1, 2, 3, 4
and 8 groups (the paper's table 1). Without the shuffle a group of one layer reads the same group of the layer before,
all the way up; a fixed random permutation tells whether the order of the shuffle matters or only that there is one.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
from torch import Tensor, nn

from experiments.models.blocks import Groups, conv_norm, conv_norm_relu, he_initialise
from gconv import Block, ChannelPermutation, ChannelShuffle, Partition

Shuffle = Literal["shuffle", "none", "random"]
Stem = Literal["imagenet", "cifar"]
WIDTHS = {"1": 144, "2": 200, "3": 240, "4": 272, "8": 384}
STEM_CHANNELS = 24
UNITS = (4, 8, 4)


class Unit(nn.Module):
    """Grouped 1×1 to a quarter of the channels, shuffle, depthwise 3×3, grouped 1×1 (figure 2 of the paper).

    The input is added or, where the stride is 2, pooled and joined in front.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, first: Groups, groups: Groups, shuffle: Shuffle
    ) -> None:
        super().__init__()
        middle = _cuttable(out_channels // 4, groups)
        self.reduce = Block(*conv_norm_relu(in_channels, middle, 1, groups=first))
        self.shuffle = {
            "shuffle": lambda: ChannelShuffle(Partition.of(groups, middle)),
            "none": nn.Identity,
            "random": lambda: ChannelPermutation.random(middle),
        }[shuffle]()
        self.depthwise = conv_norm(middle, middle, 3, stride=stride, groups=middle)
        self.expand = conv_norm(middle, out_channels - in_channels * (stride == 2), 1, groups=groups)
        self.pool = nn.AvgPool2d(3, 2, padding=1) if stride == 2 else None
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) to (N, O, H', W')."""
        y = self.expand(self.depthwise(self.shuffle(self.reduce(x_NCHW))))
        return self.relu(x_NCHW + y if self.pool is None else torch.cat([self.pool(x_NCHW), y], 1))


def shufflenet(
    classes: int = 1000,
    groups: Groups = 3,
    shuffle: Shuffle = "shuffle",
    scale: float = 1.0,
    width: int | None = None,
    stem: Stem = "imagenet",
) -> nn.Module:
    """Build ShuffleNet v1; the defaults are the published ShuffleNet 1× (g = 3).

    Args:
        classes: number of outputs.
        groups: groups of the 1×1 convolutions, except the very first, whose inputs are few (section 3.2).
        shuffle: between the 1×1 convolutions of a unit: the channel ``shuffle``, ``none``, or a ``random`` permutation,
            drawn from torch's seed, fixed and part of the weights.
        scale: factor of all widths; the bottlenecks and the stem are rounded up to what the groups can cut.
        width: channels of the first stage before scaling; by default the published one for 1, 2, 3, 4 and 8 groups.
        stem: ``imagenet``: 3×3 convolution and max-pool, both with stride 2; ``cifar``: 3×3 convolution alone.

    Returns:
        A module from (N, 3, H, W) to (N, classes).

    Raises:
        ValueError: groups that cannot cut the channels, or that the paper gives no width for.
    """
    if not 1 / 16 <= scale <= 16:
        raise ValueError(f"scale={scale}: must be from 1/16 to 16")
    if width is None:
        if str(groups) not in WIDTHS:
            raise ValueError(f"groups={groups}: the paper gives widths for {', '.join(WIDTHS)} groups only; give width")
        width = WIDTHS[str(groups)]
    width = round(width * scale)
    channels = _cuttable(round(STEM_CHANNELS * scale), groups)
    if width <= channels:
        raise ValueError(f"width of {width} channels: must be more than the {channels} of the stem")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = Block(*conv_norm_relu(3, channels, 3, stride=2 if stem == "imagenet" else 1, padding=1))
    if stem == "imagenet":
        layers["pool"] = nn.MaxPool2d(3, 2, padding=1)
    first: Groups = 1
    for stage, count in enumerate(UNITS):
        units = []
        for unit in range(count):
            units.append(Unit(channels, width << stage, 1 if unit else 2, first, groups, shuffle))
            channels, first = width << stage, groups
        layers[f"stage{stage + 2}"] = nn.Sequential(*units)
    layers.update(average=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), classify=nn.Linear(channels, classes))
    return he_initialise(nn.Sequential(layers))


def _cuttable(channels: int, groups: Groups) -> int:
    """Return the first number from ``channels`` on that the groups can cut."""
    refusal = ValueError()
    for candidate in range(channels, 2 * channels + 64):
        try:
            return Partition.of(groups, candidate).channels
        except ValueError as error:
            refusal = error
    raise refusal
