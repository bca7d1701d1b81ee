"""Parallel coordinates: every run of a sweep as a line through its parameters to its metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.colors import Normalize
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Line
from matplotlib.ticker import LogLocator, MaxNLocator

from analysis.figures import page

HEIGHT = 2.6  # inches
TICKS = 5
SPREAD = 0.06  # share of an axis over which runs of one category are spread


def draw(table: pd.DataFrame, scales: Mapping[str, str], metric: str, maximize: bool, folder: Path) -> list[Path]:
    """Draw one vertical axis per parameter and one for the metric.

    Args:
        table: one row per run: ``state``, the metric and the parameters.
        scales: of each parameter ``log``, ``linear`` or ``category``.
        metric: column of the metric of the sweep.
        maximize: True if more of it is better.
        folder: folder for the figure.

    Returns:
        The files written; none where no run came to its end.
    """
    done = table[(table["state"] == "done") & table[metric].notna()]
    if done.empty or not scales:
        return []
    page.apply_style()
    drawn = table[table[metric].notna()]
    figure, axes = plt.subplots(figsize=(page.WIDTH, HEIGHT), layout="constrained")
    names = [*scales, metric]
    heights = np.stack([_place(axes, k, drawn[n], scales.get(n, "linear")) for k, n in enumerate(names)], axis=1)
    order = np.argsort(done[metric].to_numpy(float) * (1 if maximize else -1))
    best = done.index[order[-1]]
    colours = Normalize(*_limits(done[metric].to_numpy(float)))
    for row, (index, run) in enumerate(drawn.iterrows()):
        if run["state"] != "done":
            _line(axes, heights[row], color="0.75", lw=0.6, ls=(0, (3, 2)), zorder=1)
            continue
        is_best = index == best
        colour = plt.colormaps["viridis"](colours(float(run[metric])))
        _line(axes, heights[row], color=colour, lw=2.2 if is_best else 0.9, zorder=4 if is_best else 2)
    width = page.characters_that_fit(page.WIDTH / len(names), 7)
    axes.set(xlim=(-0.15, len(names) - 0.75), ylim=(-0.06, 1.06), yticks=[])
    axes.set_xticks(range(len(names)), [page.wrapped(name, width) for name in names], fontsize=7)
    axes.tick_params(axis="x", length=0, pad=2)
    axes.xaxis.tick_top()
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(plt.cm.ScalarMappable(colours, "viridis"), ax=axes, fraction=0.03, pad=0.02)
    bar.set_label(metric, fontsize=7)
    bar.ax.tick_params(labelsize=6)
    unfinished = len(drawn) - len(done)
    grey = f" Dashed grey: {unfinished} stopped early or failed, at the last value they reported." if unfinished else ""
    missing = len(table) - len(drawn)
    silent = f" {missing} without any value are left out." if missing else ""
    page.caption(
        figure,
        f"{len(done)} runs that came to their end, one seed each, coloured by {metric}; thick: the best, chosen on the "
        f"same test images.{grey}{silent}",
    )
    return page.save(figure, folder, "parallel-coordinates")


def _limits(values: np.ndarray) -> tuple[float, float]:
    low, high = float(np.min(values)), float(np.max(values))
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _place(axes: Any, x: int, values: pd.Series, scale: str) -> np.ndarray:
    """Draw one vertical axis; heights (runs,) of the values on it, 0…1."""
    axes.axvline(x, ymin=0.05, ymax=0.95, color="0.3", lw=0.8, zorder=3)
    if scale == "category":
        names = sorted(dict.fromkeys(map(str, values)), key=_natural)
        at = {name: (k + 0.5) / len(names) for k, name in enumerate(names)}
        _ticks(axes, x, [(at[name], name) for name in names])
        places = np.array([at[str(value)] for value in values])
        within = values.groupby(values.map(str)).cumcount().to_numpy(float)
        count = values.groupby(values.map(str)).transform("size").to_numpy(float)
        return places + SPREAD * ((within + 0.5) / count - 0.5) * 2
    numbers = values.to_numpy(float)
    measured = np.log10(numbers) if scale == "log" else numbers
    low, high = _limits(measured)
    limits = (10**low, 10**high) if scale == "log" else (low, high)
    locator = LogLocator(subs=(1.0, 2.0, 5.0)) if scale == "log" else MaxNLocator(TICKS)
    ticks = [tick for tick in locator.tick_values(*limits) if limits[0] <= tick <= limits[1]]
    step = max(1, round(len(ticks) / TICKS))
    heights = np.log10(ticks) if scale == "log" else np.asarray(ticks)
    marks = list(zip(heights, ticks, strict=True))[::step]
    _ticks(axes, x, [((height - low) / (high - low), f"{tick:.4g}") for height, tick in marks])
    return (measured - low) / (high - low)


def _ticks(axes: Any, x: int, ticks: Sequence[tuple[float, str]]) -> None:
    for height, text in ticks:
        axes.plot([x - 0.015, x + 0.015], [height, height], color="0.3", lw=0.8, zorder=3)
        box = {"facecolor": "white", "alpha": 0.75, "pad": 0.6, "lw": 0}
        axes.text(
            x - 0.03, height, page.short_names([text], 9)[text], ha="right", va="center", fontsize=6, bbox=box, zorder=5
        )


def _natural(text: str) -> tuple[int, float, str]:
    """Return a sort key: numbers by size, before texts."""
    try:
        return (0, float(text), text)
    except ValueError:
        return (1, 0.0, text)


def _line(axes: Any, heights: np.ndarray, **look: Any) -> None:
    """Return a smooth line through the axes, level where it crosses one."""
    points, codes = [(0.0, heights[0])], [Line.MOVETO]
    for x in range(1, len(heights)):
        points += [(x - 0.6, heights[x - 1]), (x - 0.4, heights[x]), (float(x), heights[x])]
        codes += [Line.CURVE4] * 3
    axes.add_patch(PathPatch(Line(points, codes), fill=False, capstyle="round", **look))
