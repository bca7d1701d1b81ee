"""One small network replicated: the cost of width with filter groups and without.

The module is a column of three convolutions (5×5, w filters; 3×3, 2w; 3×3, 2w). R replicas side by side are the same
network R times as wide in R groups: its cost grows as R. Without groups every replica reads every other, and its cost
grows as R².
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from experiments.models.blocks import Groups, conv_norm_relu
from gconv import Block


def widen(classes: int = 10, replicas: int = 4, groups: Groups | None = None, width: int = 8) -> nn.Module:
    """Build R replicas of the module and a linear layer that reads them all.

    Args:
        classes: number of outputs.
        replicas: R.
        groups: groups of conv2 and conv3: by default R, one per replica; 1 for the dense network of the
            same width.
        width: filters of the module's first convolution, w.

    Returns:
        A module from (N, 3, H, W), H and W at least 7, to (N, classes).

    Raises:
        ValueError: fewer than one replica, or groups that cannot cut the channels.
    """
    if replicas < 1 or width < 1:
        raise ValueError(f"replicas={replicas}, width={width}: must be at least 1")
    groups = replicas if groups is None else groups
    w = replicas * width
    layers: OrderedDict[str, nn.Module] = OrderedDict()

    def convolve(number: int, in_channels: int, out_channels: int, kernel_size: int, stride: int, cut: Groups) -> None:
        parts = conv_norm_relu(
            in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, groups=cut
        )
        layers.update({f"{kind}{number}": p for kind, p in zip(["conv", "norm", "relu"], parts, strict=True)})

    convolve(1, 3, w, 5, 2, 1)  # every replica reads the whole image
    layers["pool1"] = nn.MaxPool2d(2)
    convolve(2, w, 2 * w, 3, 1, groups)
    layers["pool2"] = nn.MaxPool2d(2)
    convolve(3, 2 * w, 2 * w, 3, 1, groups)
    layers.update(average=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), classify=nn.Linear(2 * w, classes))
    return Block(layers)
