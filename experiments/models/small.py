"""A small network in the image of AlexNet, for 32-pixel images and minutes on a laptop.

As in AlexNet conv1 is dense, so that its filters belong to the group of conv2 that reads them; conv2 and conv3 are cut.
"""

from collections import OrderedDict

from torch import nn

from experiments.models.blocks import Groups, conv_norm_relu
from gconv import Block


def small(classes: int = 10, groups: Groups = 1, width: int = 32) -> nn.Module:
    """Build the small network.

    Args:
        classes: number of outputs.
        groups: groups of conv2 and conv3.
        width: filters of conv1; conv2 and conv3 have twice as many.

    Returns:
        A module from (N, 3, H, W), H and W at least 7, to (N, classes).

    Raises:
        ValueError: the groups cannot cut the channels.
    """
    conv1, norm1, relu1 = conv_norm_relu(3, width, 5, stride=2, padding=2)
    conv2, norm2, relu2 = conv_norm_relu(width, 2 * width, 3, padding=1, groups=groups)
    conv3, norm3, relu3 = conv_norm_relu(2 * width, 2 * width, 3, padding=1, groups=groups)
    return Block(
        OrderedDict(
            conv1=conv1,
            norm1=norm1,
            relu1=relu1,
            pool1=nn.MaxPool2d(2),
            conv2=conv2,
            norm2=norm2,
            relu2=relu2,
            pool2=nn.MaxPool2d(2),
            conv3=conv3,
            norm3=norm3,
            relu3=relu3,
            average=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classify=nn.Linear(2 * width, classes),
        )
    )
