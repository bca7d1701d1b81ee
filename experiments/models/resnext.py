"""ResNeXt (Xie et al. 2017, arXiv 1611.05431): bottleneck blocks whose 3×3 convolution is cut into groups.

The number of groups is the *cardinality*. Cardinality and the width of a group are traded at equal cost: 1 × 64d,
2 × 40d, 4 × 24d, 8 × 14d and 32 × 4d bottlenecks all have about 70 thousand weights (the paper's table 2).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn

from experiments.models.blocks import Groups, conv_norm, conv_norm_relu, he_initialise
from gconv import Block, Partition

TOLERANCE = 0.1  # of the weights of a block; the paper's own pairs are within 2%


class Bottleneck(nn.Module):
    """1×1 to the bottleneck, grouped 3×3, 1×1 out of it; the identity, or a 1×1 projection where shapes differ, added.

    As in the published code the stride is in the 3×3 convolution.
    """

    def __init__(
        self, in_channels: int, bottleneck: int, out_channels: int, stride: int, groups: Groups, shortcut: bool
    ) -> None:
        super().__init__()
        self.reduce = Block(*conv_norm_relu(in_channels, bottleneck, 1))
        self.grouped = Block(*conv_norm_relu(bottleneck, bottleneck, 3, stride=stride, padding=1, groups=groups))
        self.expand = conv_norm(bottleneck, out_channels, 1)
        self.shortcut: nn.Module | None = None
        if shortcut:
            same = stride == 1 and in_channels == out_channels
            self.shortcut = nn.Identity() if same else conv_norm(in_channels, out_channels, 1, stride=stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) to (N, O, H', W')."""
        y = self.expand(self.grouped(self.reduce(x_NCHW)))
        return self.relu(y if self.shortcut is None else y + self.shortcut(x_NCHW))


def resnext(
    classes: int = 1000,
    cardinality: Groups = 32,
    width: int | float | None = None,
    blocks: list[int] | None = None,
    stem: Literal["imagenet", "cifar"] = "imagenet",
    channels: int = 256,
    shortcut: bool = True,
) -> nn.Module:
    """Build ResNeXt; the defaults are the published ResNeXt-50 (32 × 4d), layer for layer that of torchvision.

    Args:
        classes: number of outputs.
        cardinality: groups of the 3×3 convolutions: their number, or any partition of the bottleneck.
        width: channels of a group in the first stage, the mean where groups are unequal (12.5 with ~4). By default that
            at which a block has as many weights as one with a single group of ``channels / 4``, as in the paper.
        blocks: bottlenecks per stage, each stage twice as wide at half the resolution; 3, 4, 6, 3 by default.
        stem: ``imagenet``: 7×7 convolution with stride 2 and max-pool; ``cifar``: 3×3 convolution.
        channels: that leave the first stage; 256 as published, the stem has a quarter of them.
        shortcut: True if blocks are residual.

    Returns:
        A module from (N, 3, H, W) to (N, classes).

    Raises:
        ValueError: a cardinality that cannot cut the bottleneck; channels that are no multiple of 4.
    """
    blocks = [3, 4, 6, 3] if blocks is None else blocks
    if not blocks or min(blocks) < 1:
        raise ValueError(f"blocks={blocks}: must be the number of blocks of each stage, each at least 1")
    if channels < 4 or channels % 4:
        raise ValueError(f"channels={channels}: must be a multiple of 4")
    bottleneck = _bottleneck(cardinality, width, channels)
    in_channels = channels // 4
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if stem == "imagenet":
        layers["stem"] = Block(*conv_norm_relu(3, in_channels, 7, stride=2, padding=3))
        layers["pool"] = nn.MaxPool2d(3, 2, padding=1)
    else:
        layers["stem"] = Block(*conv_norm_relu(3, in_channels, 3, padding=1))
    for stage, count in enumerate(blocks):
        stage_blocks = []
        for block in range(count):
            stride = 2 if stage and not block else 1
            stage_blocks.append(
                Bottleneck(in_channels, bottleneck << stage, channels << stage, stride, cardinality, shortcut)
            )
            in_channels = channels << stage
        layers[f"stage{stage + 1}"] = nn.Sequential(*stage_blocks)
    layers.update(average=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), classify=nn.Linear(in_channels, classes))
    return he_initialise(nn.Sequential(layers))


def _bottleneck(cardinality: Groups, width: float | None, channels: int) -> int:
    """Return the channels of the first stage's bottleneck."""
    cuts, refusal = {}, ValueError()
    for bottleneck in range(1, 2 * channels + 1):
        try:
            cuts[bottleneck] = Partition.of(cardinality, bottleneck)
        except ValueError as error:
            refusal = error
    if not cuts:
        raise ValueError(f"cardinality={cardinality}: {refusal}")
    if width is not None:
        if width < 1:
            raise ValueError(f"width={width}: must be at least 1")
        return round(width * next(iter(cuts.values())).groups)
    wanted = 2 * channels * (channels // 4) + 9 * (channels // 4) ** 2
    weights = {c: 2 * channels * c + 9 * sum(size**2 for size in cut.sizes) for c, cut in cuts.items()}
    nearest = min(weights, key=lambda c: abs(weights[c] - wanted))
    if abs(weights[nearest] - wanted) > TOLERANCE * wanted:
        unequal = "" if str(cardinality).startswith("~") else f", or round the groups with ~{cardinality}"
        raise ValueError(
            f"cardinality={cardinality}: no bottleneck that it divides has the {wanted:,} weights of a block of one "
            f"group within {TOLERANCE:.0%}; the nearest, of {nearest} channels, has {weights[nearest]:,}; "
            f"give width{unequal}"
        )
    return nearest
