"""A shallow network of three grouped stages with identity shortcuts, for logarithmic filter groups.

After Lee, Baddar, Kim & Ro 2017 ("Convolution with Logarithmic Filter Groups for Efficient Shallow CNN",
arXiv 1707.09855). Theirs: a shallow network, filter groups of 1/2, 1/4, … of the channels, and an identity shortcut
around each grouped convolution. The layer table of the paper was not available; these choices are ours:

- a dense 5×5 stem and a 2×2 max-pool, then three grouped 3×3 convolutions at 1/2, 1/4 and 1/8 of the resolution with
  1, 2 and 4 times the width;
- between them a dense 1×1 convolution that doubles the width, and a 2×2 max-pool. So every stage reads all groups of
  the one before, and inputs and outputs of a grouped convolution are as many, as an identity shortcut needs;
- batch normalisation after every convolution, the shortcut added before the ReLU: relu(norm(conv(x)) + x);
- global average pooling and one linear layer.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import cache
from typing import Literal

from torch import Tensor, nn

from experiments.models.blocks import Groups, conv_norm, conv_norm_relu, he_initialise
from experiments.models.budget import Spent, cost_of, width_at_equal_cost
from gconv import Block, run_block


class GroupedStage(nn.Module):
    """relu(norm(conv(x)) + x), the sum left out where there is no shortcut."""

    def __init__(self, width: int, groups: Groups, shortcut: bool) -> None:
        super().__init__()
        self.conv, self.norm = conv_norm(width, width, 3, groups=groups)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = shortcut

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        y = run_block(x_NCHW, self.conv, self.norm)
        return self.relu(y + x_NCHW if self.shortcut else y)


def lognet(
    classes: int = 10,
    groups: Groups = "log:4",
    shortcut: bool = True,
    width: int = 64,
    equal: Literal["width", "parameters", "macs"] = "width",
    equal_to: Groups = 1,
    budget: int | None = None,
    input_size: int = 32,
) -> nn.Module:
    """Build the network.

    Args:
        classes: number of outputs.
        groups: groups of the three grouped convolutions; 1 for the dense network.
        shortcut: True if each grouped convolution has an identity shortcut.
        width: channels of the first stage, where ``equal`` is ``width``.
        equal: cost held equal between variants. ``parameters`` and ``macs`` choose the width at which the network
            costs what the reference costs: the same network of ``width`` cut as ``equal_to``.
        equal_to: groups of the reference; the dense network by default.
        budget: parameters or MACs to spend, in place of a reference.
        input_size: height and width of the images in pixels, at least 8; MACs depend on it.

    Returns:
        A module from (N, 3, input_size, input_size) to (N, classes).

    Raises:
        ValueError: groups that cannot cut the channels, or a budget that no width meets (says the nearest).
    """
    if equal != "width":
        hashable = tuple(tuple(g) if isinstance(g, list) else g for g in (groups, equal_to))
        width = _width_at_equal_cost(classes, *hashable, shortcut, width, equal, budget, input_size)
    elif budget is not None:
        raise ValueError(f"budget={budget}: say of what: equal=parameters or equal=macs")
    return he_initialise(_network(classes, groups, shortcut, width))


@cache
def _width_at_equal_cost(
    classes: int,
    groups: Groups,
    equal_to: Groups,
    shortcut: bool,
    width: int,
    equal: Spent,
    budget: int | None,
    input_size: int,
) -> int:
    if budget is None:
        budget = cost_of(lambda: _network(classes, equal_to, shortcut, width), equal, input_size)
    return width_at_equal_cost(lambda w: _network(classes, groups, shortcut, w), equal, budget, input_size)


def _network(classes: int, groups: Groups, shortcut: bool, width: int) -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = Block(*conv_norm_relu(3, width, 5, padding=2), nn.MaxPool2d(2))
    for stage in (1, 2, 3):
        layers[f"stage{stage}"] = GroupedStage(width, groups, shortcut)
        if stage < 3:
            layers[f"widen{stage}"] = Block(*conv_norm_relu(width, 2 * width, 1), nn.MaxPool2d(2))
            width *= 2
    layers.update(average=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), classify=nn.Linear(width, classes))
    return nn.Sequential(layers)
