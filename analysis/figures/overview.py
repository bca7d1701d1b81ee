"""A study in one picture: filters by the group that reads them, their separation by colour, accuracy against time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.evidence import FEW_LEARNED, unlearned_runs
from analysis.figures import page
from analysis.figures.filters import draw_strip, index_text
from analysis.figures.page import Style
from analysis.figures.saved import Saved
from analysis.figures.tradeoff import draw_variant
from analysis.nulls import LABELS_PERMUTED
from analysis.tradeoff import tradeoff_table

SEPARATION = "separation_colour_auc"
CHANCE = 0.5  # of an AUC


def draw(saved: Saved, folder: Path) -> list[Path]:
    """Draw three panels: filters of the first variant with groups, and of all variants separation and accuracy.

    Args:
        saved: the long table, and arrays with ``filters`` and ``filter_groups``.
        folder: folder for the figure.

    Returns:
        The files written; none if no first layer is read by several groups, or if no time was measured.
    """
    grouped = [name for name, a in saved.arrays.items() if len(np.unique(a.get("filter_groups", ()))) > 1]
    separation = saved.measures[saved.measures["measure"] == SEPARATION]
    costs = tradeoff_table(saved.measures)
    if not grouped or separation.empty or costs.empty or costs["latency"].isna().all():
        return []
    styles = page.variant_styles(list(costs["variant"]))
    figure = plt.figure(figsize=(page.WIDTH, 3.3), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 1.8))
    strip = figure.add_subplot(grid[0, :])
    _, means, counts = draw_strip(strip, saved.arrays[grouped[0]])
    of_groups = [f"{index_text(mean)} ({n} of {all_})" for mean, (n, all_) in zip(means, counts, strict=True)]
    name = page.short_names([grouped[0]], 24)[grouped[0]]
    title = f"{name}: colour index by reading group: {', '.join(of_groups)}"
    strip.set_title(page.wrapped(title, page.characters_that_fit(page.WIDTH, 7)), fontsize=7)
    left, right = figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1])
    of_noise = unlearned_runs(saved.measures)
    learned = [run not in of_noise for run in zip(separation["variant"], separation["seed"], strict=True)]
    _draw_separation(left, separation[learned], styles)
    accuracy = saved.measures[saved.measures["measure"] == "test_accuracy"].groupby("variant")["value"]
    for _, row in costs.dropna(subset="latency").iterrows():
        draw_variant(right, row, "latency", accuracy.get_group(row["variant"]), styles)
    right.set_xlabel("time per image (ms)", fontsize=7)
    right.set_ylabel("test accuracy", fontsize=7)
    right.tick_params(labelsize=6.5)
    right.xaxis.set_major_locator(MaxNLocator(4))
    variants = list(costs["variant"])
    looks = [styles[variant] for variant in variants]
    handles = [Line2D([], [], color=s.colour, marker=s.marker, markersize=4, linestyle="") for s in looks]
    page.title(figure, "What the groups of a network learn, and what they save")
    page.legend(figure, handles, variants)
    page.caption(
        figure,
        "Top: first-layer filters, a block for each group that reads them; mean colour index, and in brackets how many "
        "filters learned (–: none). Left: separation of the groups by colour (area under the curve), a mark for "
        f"each seed of which {FEW_LEARNED:.0%} of the filters or more learned; grey: the mean with labels permuted, of "
        "the same seed; line: no separation. Right: mean accuracy with its 95% interval (of six seeds or more) and "
        "median time of an image with its quartiles; dots: seeds.",
    )
    return page.save(figure, folder, "overview")


def _draw_separation(axes: Axes, separation: pd.DataFrame, styles: Mapping[str, Style]) -> None:
    """Draw the area under the curve of each seed with its null, variant by variant."""
    trained = separation[separation["null"] == ""]
    variants = [variant for variant in styles if variant in set(trained["variant"])]
    permuted = separation[separation["null"] == LABELS_PERMUTED]
    axes.axhline(CHANCE, color="0.6", linewidth=0.7, zorder=1)
    for place, variant in enumerate(variants):
        of_seeds = trained[trained["variant"] == variant].groupby("seed")["value"].mean().dropna()
        nulls = permuted[permuted["variant"] == variant].groupby("seed")["value"].mean().reindex(of_seeds.index)
        at = place + np.linspace(-0.3, 0.3, len(of_seeds)) if len(of_seeds) > 1 else np.array([place])
        style = styles[variant]
        axes.vlines(at, nulls, of_seeds, color="0.8", linewidth=0.7, zorder=1)
        axes.plot(at, nulls, "_", color="0.45", markersize=5, zorder=2)
        axes.plot(at, of_seeds, style.marker, color=style.colour, markersize=4, zorder=3)
    fits = page.characters_that_fit(page.WIDTH / 2.4 / max(1, len(variants)), 6.5) - 1
    named = variants if max(map(len, variants), default=0) <= fits else []  # else the legend alone names the marks
    axes.set_xticks(range(len(named)), named, fontsize=6.5)
    axes.set_xlim(-0.6, len(variants) - 0.4)
    axes.set_ylabel("separation by colour (AUC)", fontsize=7)
    axes.tick_params(labelsize=6.5)
