"""Network in Network with root, tree and column filter groups (Ioannou et al. 2017, "Deep Roots", arXiv 1605.06489).

Three stages of one spatial convolution and two 1×1 (Lin et al. 2014): 5×5,192 → 160 → 96, 5×5,192 → 192 → 192,
3×3,192 → 192 → classes. conv1a is never grouped; the other spatial convolutions, conv2a and conv3a, are. A *root* has
fewer groups the deeper it is (G, then G/2), a *tree* more (G, then 2G), a *column* as many.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from experiments.models.blocks import Groups, Norm, conv_norm_relu, he_initialise
from gconv import Block


def nin(
    classes: int = 10, variant: str = "orig", groups: list[Groups] | None = None, norm: Norm = "none", width: int = 192
) -> nn.Module:
    """Build Network in Network; the defaults are the published network as it is deployed.

    Args:
        classes: number of outputs.
        variant: ``orig``, ``root-G``, ``tree-G`` or ``column-G``. G is a number of groups or ``log:n``, which a root
            follows with log:(n-1) and a tree with log:(n+1); in a column it is any partition.
        groups: groups of conv2a and conv3a, if ``variant`` does not give them.
        norm: ``none``, with biases, as the published counts have it; ``batch``, as the network is trained: each norm
            can be folded into its convolution afterwards, which then has the bias.
        width: filters of the stages, 192 as published. The first stage narrows to 5/6 and 1/2 of it.

    Returns:
        A module from (N, 3, H, W), H and W at least 7, to (N, classes).

    Raises:
        ValueError: an unknown variant, or groups that cannot cut the channels.
    """
    if groups is None:
        groups = _groups_of(variant)
    elif variant != "orig" or len(groups) != 2:
        raise ValueError(f"groups={groups}: must be two partitions, for conv2a and conv3a, and variant=orig")
    layers: OrderedDict[str, nn.Module] = OrderedDict()

    def convolve(name: str, in_channels: int, out_channels: int, kernel_size: int = 1, groups: Groups = 1) -> None:
        parts = conv_norm_relu(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, groups=groups, norm=norm
        )
        kinds = ["conv", "norm", "relu"] if len(parts) == 3 else ["conv", "relu"]
        layers.update({f"{kind}{name}": part for kind, part in zip(kinds, parts, strict=True)})

    convolve("1a", 3, width, 5)
    convolve("1b", width, width * 5 // 6)
    convolve("1c", width * 5 // 6, width // 2)
    layers["pool1"] = nn.MaxPool2d(3, 2, ceil_mode=True)
    convolve("2a", width // 2, width, 5, groups[0])
    convolve("2b", width, width)
    convolve("2c", width, width)
    layers["pool2"] = nn.AvgPool2d(3, 2, ceil_mode=True)
    convolve("3a", width, width, 3, groups[1])
    convolve("3b", width, width)
    layers["conv3c"] = nn.Conv2d(width, classes, 1)  # its averaged responses are the class scores
    layers.update(average=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
    return he_initialise(Block(layers))


def _groups_of(variant: str) -> list[Groups]:
    """Return the groups of conv2a and of conv3a."""
    if variant == "orig":
        return [1, 1]
    shape, _, text = variant.partition("-")
    if shape == "column" and text:
        return [text, text]
    logarithmic = text.startswith("log:")
    number = text.removeprefix("log:")
    if shape not in ("root", "tree") or not number.isdecimal():
        raise ValueError(f"variant={variant}: must be orig, root-G, tree-G or column-G, such as root-4 or column-log:4")
    first = int(number)
    step = 1 if logarithmic else first
    second = first + step if shape == "tree" else max(1, first - step if logarithmic else first // 2)
    return [f"log:{first}", f"log:{second}"] if logarithmic else [first, second]
