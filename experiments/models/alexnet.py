"""AlexNet (Krizhevsky et al. 2012) in the BVLC layout: 96-256-384-384-256 filters of 11, 5, 3, 3, 3.

conv2, conv4 and conv5 are cut into groups; conv1 is dense (its filters belong to the group of conv2 that reads them)
and conv3 reads every group. torchvision's ``alexnet`` is another, ungrouped, narrower network.
"""

import math
from collections import OrderedDict
from typing import Literal

from torch import nn

from experiments.models.blocks import Groups, Norm, conv_norm_relu
from gconv import Block


def alexnet(
    classes: int = 1000,
    groups: Groups = 2,
    norm: Norm = "local",
    head: Literal["dense", "average"] = "dense",
    input_size: int = 227,
    dropout: float = 0.5,
    width: float = 1.0,
) -> nn.Module:
    """Build AlexNet; the defaults are the published network.

    Args:
        classes: number of outputs.
        groups: groups of conv2, conv4 and conv5; 2 as published, 1 for the dense network.
        norm: ``local`` response normalisation as published, ``batch`` normalisation after every convolution, or none.
        head: ``dense``, the published three fully connected layers, or ``average``: global average pooling and one.
        input_size: height and width of the images in pixels; 227 as published.
        dropout: probability in the dense head.
        width: multiplies the filters of every convolution, rounded to a multiple of 8; 1 as published.

    Returns:
        A module from (N, 3, input_size, input_size) to (N, classes).

    Raises:
        ValueError: the groups cannot cut the channels, the images are too small, or the width is not above 0.
    """
    if not 0 < width < math.inf:
        raise ValueError(f"width={width}: must be above 0 and finite")
    c1, c2, c3 = (max(8, 8 * round(filters * width / 8)) for filters in (96, 256, 384))
    side = _pooled(_pooled(_pooled((input_size - 11) // 4 + 1)))
    if side < 1:
        raise ValueError(f"input_size={input_size}: AlexNet needs images of at least 67 pixels")
    layers: OrderedDict[str, nn.Module] = OrderedDict()

    def stage(index: int, parts: list[nn.Module]) -> None:
        names = ["conv", "norm", "relu"] if len(parts) == 3 else ["conv", "relu"]
        layers.update({f"{name}{index}": part for name, part in zip(names, parts, strict=True)})

    def pool(index: int) -> None:
        if norm == "local" and index < 5:
            layers[f"norm{index}"] = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
        layers[f"pool{index}"] = nn.MaxPool2d(3, 2)

    stage(1, conv_norm_relu(3, c1, 11, stride=4, norm=norm))
    pool(1)
    stage(2, conv_norm_relu(c1, c2, 5, padding=2, groups=groups, norm=norm))
    pool(2)
    stage(3, conv_norm_relu(c2, c3, 3, padding=1, norm=norm))
    stage(4, conv_norm_relu(c3, c3, 3, padding=1, groups=groups, norm=norm))
    stage(5, conv_norm_relu(c3, c2, 3, padding=1, groups=groups, norm=norm))
    pool(5)
    if head == "average":
        layers.update(average=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), classify=nn.Linear(c2, classes))
    else:
        layers.update(
            flatten=nn.Flatten(),
            fc6=nn.Linear(c2 * side * side, 4096),
            relu6=nn.ReLU(inplace=True),
            drop6=nn.Dropout(dropout),
            fc7=nn.Linear(4096, 4096),
            relu7=nn.ReLU(inplace=True),
            drop7=nn.Dropout(dropout),
            classify=nn.Linear(4096, classes),
        )
    return Block(layers)


def _pooled(size: int) -> int:
    return (size - 3) // 2 + 1
