"""First-layer filters, laid out by the group that reads them."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, sqrt
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from analysis.figures import page


def draw(arrays: Mapping[str, Mapping[str, NDArray]], folder: Path) -> list[Path]:
    """One strip per variant; inside it one block per group, the most coloured filters first.

    Args:
        arrays: per variant ``filters`` (O, 3, K, K), ``colour_index`` and ``learned`` (O,), and ``filter_groups`` (O,)
            if several groups read them.
        folder: where the figure goes.

    Returns:
        The files written; none if no variant has RGB filters.
    """
    shown = {name: a for name, a in arrays.items() if "filters" in a}
    if not shown:
        return []
    figure, strips = plt.subplots(
        len(shown), 1, figsize=(page.WIDTH, 0.3 + 0.85 * len(shown)), squeeze=False, layout="constrained"
    )
    for strip, (name, a) in zip(strips[:, 0], shown.items(), strict=True):
        groups = a.get("filter_groups", np.zeros(len(a["filters"]), dtype=int))
        blocks, left = [], 0
        kernel = a["filters"].shape[-1]
        rows = max(2, round(sqrt(len(a["filters"]) / 6)))  # of filters in a block
        for group in np.unique(groups):
            member = np.flatnonzero(groups == group)
            ordered = member[np.argsort(-np.nan_to_num(a["colour_index"][member]))]
            blocks.append(_mosaic(a["filters"][ordered], rows))
            right = left + blocks[-1].shape[1]
            kept = member[a["learned"][member]]
            mean = f"{a['colour_index'][kept].mean():.2f}" if len(kept) else "none learned"
            title = f"group {group + 1}: {mean}" if len(np.unique(groups)) > 1 else f"all: {mean}"
            strip.text((left + right) / 2, -1, title, ha="center", va="bottom", fontsize=6)
            left = right + kernel
        gap = np.ones((blocks[0].shape[0], kernel, 3))
        strip.imshow(np.concatenate([part for block in blocks for part in (block, gap)][:-1], axis=1))
        strip.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=7)
        strip.set(xticks=[], yticks=[])
        for spine in strip.spines.values():
            spine.set_visible(False)
    figure.suptitle("First-layer filters by the group that reads them, with their mean colour index")
    return page.save(figure, folder, "filters")


def _mosaic(filters_O3KK: NDArray, rows: int) -> NDArray:
    """The filters as one image, column by column, each scaled to its own largest weight, white lines between."""
    count, _, height, width = filters_O3KK.shape
    columns = ceil(count / rows)
    image = np.ones((rows * (height + 1) - 1, columns * (width + 1) - 1, 3))
    for number, weights in enumerate(filters_O3KK):
        column, row = divmod(number, rows)
        top, left = row * (height + 1), column * (width + 1)
        scale = np.abs(weights).max() or 1.0
        image[top : top + height, left : left + width] = 0.5 + 0.5 * weights.transpose(1, 2, 0) / scale
    return image
