"""Width at which a network costs as much as another, for comparisons at equal parameters or equal MACs."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
from torch import nn

from gconv.cost import count_cost

Spent = Literal["parameters", "macs"]
WIDEST = 2048  # channels
TOLERANCE = 0.03  # of the budget: at 64 channels, one more or less is 3%


def cost_of(build: Callable[[], nn.Module], spent: Spent, input_size: int) -> int:
    """Return the parameters of a network, or its MACs for one image of ``input_size`` pixels height and width."""
    with torch.device("meta"):
        return getattr(count_cost(build(), (3, input_size, input_size)), spent)


def width_at_equal_cost(build: Callable[[int], nn.Module], spent: Spent, budget: int, input_size: int) -> int:
    """Return the width whose cost is nearest to the budget.

    Args:
        build: the network of a width; its cost must grow with the width, and a width that its groups cannot cut must
            raise ``ValueError``.
        spent: quantity of the budget.
        budget: parameters, or MACs of one image.
        input_size: height and width of the images in pixels.

    Raises:
        ValueError: no width costs within 3% of the budget (names the nearest costs), or none can be cut at all.
    """

    @cache
    def cost(width: int) -> int | None:
        try:
            return cost_of(lambda: build(width), spent, input_size)
        except ValueError:
            return None

    def next_that_can_be_cut(width: int) -> int:
        return next((w for w in range(width, WIDEST) if cost(w) is not None), WIDEST)

    def reaches_budget(width: int) -> bool:
        return (cost(next_that_can_be_cut(width)) or budget) >= budget

    # Where the first width that reaches the budget cannot be cut itself, the next that can is meant; the one before it
    # always can.
    first = 1 + bisect_left(range(1, WIDEST), True, key=reaches_budget)
    around = {w: c for w in (first - 1, next_that_can_be_cut(first)) if w and (c := cost(w)) is not None}
    if not around:
        build(WIDEST)  # raises the error about the groups
    nearest = min(around, key=lambda width: abs(around[width] - budget))
    if abs(around[nearest] - budget) > TOLERANCE * budget:
        costs = " and ".join(f"width {width} costs {around[width]:,}" for width in sorted(around))
        hint = "; groups with a ~ before them, such as ~log:4, can cut any width" if cost(nearest + 1) is None else ""
        raise ValueError(f"no width meets a budget of {budget:,} {spent} within {TOLERANCE:.0%}: {costs}{hint}")
    return nearest
