"""First-layer filters, laid out by the group that reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import ceil, isnan, nan, sqrt
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from analysis.figures import page
from analysis.figures.saved import Saved

TITLE = 6  # size of the text over a block


def draw(saved: Saved, folder: Path) -> list[Path]:
    """Draw one strip per variant; inside it one block per group, the most coloured filters first.

    Args:
        saved: per variant the arrays ``filters`` (O, 3, K, K), ``colour_index`` and ``learned`` (O,), and
            ``filter_groups`` (O,) if several groups read them.
        folder: folder for the figure.

    Returns:
        The files written; none if no variant has RGB filters.
    """
    drawn = {name: a for name, a in saved.arrays.items() if "filters" in a}
    if not drawn:
        return []
    height = min(0.85, (page.HEIGHT - 0.3) / len(drawn))
    figure, strips = plt.subplots(
        len(drawn), 1, figsize=(page.WIDTH, 0.3 + height * len(drawn)), squeeze=False, layout="constrained"
    )
    names = page.short_names(list(drawn), 36)
    blocks = {}
    for strip, (name, a) in zip(strips[:, 0], drawn.items(), strict=True):
        blocks[name] = draw_strip(strip, a)
        strip.set_ylabel(page.wrapped(names[name], 13, 3), rotation=0, ha="right", va="center", fontsize=7)
    page.title(figure, "First-layer filters by the group that reads them, with their mean colour index")
    page.fix_layout(figure)  # now every strip has its size
    for strip, (edges, means, counts) in zip(strips[:, 0], blocks.values(), strict=True):
        pixels = strip.transData.transform([(left, 0) for left, _ in edges] + [(edges[-1][1], 0)])[:, 0]
        starts = list(pixels / figure.dpi)
        for (left, right), text in zip(edges, titles(starts, means, counts), strict=True):
            strip.text((left + right) / 2, -1, text, ha="center", va="bottom", fontsize=TITLE)
    page.caption(
        figure,
        "Each filter scaled to its own largest weight, the most coloured first. Over each group its number and the "
        "mean colour index of its learned filters, their number in brackets, –: none learned; left out where there is "
        "no room.",
    )
    return page.save(figure, folder, "filters")


def titles(starts: Sequence[float], means: Sequence[float], counts: Sequence[tuple[int, int]]) -> list[str]:
    """Return the titles of the blocks of a strip: the longest form that fits over all, else over as many as fit.

    Args:
        starts: (G + 1,) inches at which the blocks start, and at which the last one ends.
        means: (G,) mean colour index; NaN where no filter of the group is learned.
        counts: (G,) learned filters of a group, and all of them.
    """
    room = [page.characters_that_fit(right - left, TITLE) for left, right in pairwise(starts)]
    if len(means) == 1:
        return [f"all: {index_text(means[0])} ({counts[0][0]} of {counts[0][1]})"]
    brief = [index_text(mean) for mean in means]
    forms = [
        [
            f"group {g}: {mean} ({n} of {all_})"
            for g, (mean, (n, all_)) in enumerate(zip(brief, counts, strict=True), 1)
        ],
        [f"{g}: {mean} ({n})" for g, (mean, (n, _)) in enumerate(zip(brief, counts, strict=True), 1)],
        [f"{g}: {mean}" for g, mean in enumerate(brief, 1)],
        brief,
    ]
    for texts in forms:
        if all(len(text) <= fits for text, fits in zip(texts, room, strict=True)):
            return texts
    return [text if len(text) <= fits else "" for text, fits in zip(brief, room, strict=True)]


def index_text(mean: float) -> str:
    """Return the mean colour index of a group; a dash where none of its filters is learned."""
    return "–" if isnan(mean) else f"{mean:.2f}"


def draw_strip(
    strip: Axes, a: Mapping[str, NDArray]
) -> tuple[list[tuple[int, int]], list[float], list[tuple[int, int]]]:
    """Draw the blocks of one variant.

    Returns:
        Of each block its left and its right edge, its mean colour index, and how many filters are learned and in all.
    """
    groups = a.get("filter_groups", np.zeros(len(a["filters"]), dtype=int))
    kernel = a["filters"].shape[-1]
    rows = max(2, round(sqrt(len(a["filters"]) / 6)))  # of filters in a block
    blocks, edges, means, counts, left = [], [], [], [], 0
    for group in np.unique(groups):
        member = np.flatnonzero(groups == group)
        ordered = member[np.argsort(-np.nan_to_num(a["colour_index"][member]))]
        blocks.append(_mosaic(a["filters"][ordered], rows))
        edges.append((left, left + blocks[-1].shape[1]))
        kept = member[a["learned"][member]]
        counts.append((len(kept), len(member)))
        means.append(float(a["colour_index"][kept].mean()) if len(kept) else nan)
        left = edges[-1][1] + kernel
    gap = np.ones((blocks[0].shape[0], kernel, 3))
    strip.imshow(np.concatenate([part for block in blocks for part in (block, gap)][:-1], axis=1))
    strip.set_title(" ", fontsize=TITLE)  # room for the titles of the blocks
    strip.set(xticks=[], yticks=[])
    for spine in strip.spines.values():
        spine.set_visible(False)
    return edges, means, counts


def _mosaic(filters_O3KK: NDArray, rows: int) -> NDArray:
    """Return the filters as one image, column by column, each scaled to its own largest weight, white lines between."""
    count, _, height, width = filters_O3KK.shape
    columns = ceil(count / rows)
    image = np.ones((rows * (height + 1) - 1, columns * (width + 1) - 1, 3))
    for number, weights in enumerate(filters_O3KK):
        column, row = divmod(number, rows)
        top, left = row * (height + 1), column * (width + 1)
        scale = np.abs(weights).max() or 1.0
        image[top : top + height, left : left + width] = 0.5 + 0.5 * weights.transpose(1, 2, 0) / scale
    return image
