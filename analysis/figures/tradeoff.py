"""Accuracy against cost, with intervals over seeds."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis.figures import page
from analysis.tradeoff import COSTS, tradeoff_table


def draw(table: pd.DataFrame, folder: Path) -> list[Path]:
    """One panel per cost; each variant a point with its 95% interval, and every seed a faint dot.

    Args:
        table: the long table of a study.
        folder: where the figure goes.
    """
    summary = tradeoff_table(table)
    if summary.empty:
        return []
    costs = [cost for cost in COSTS if summary[cost].notna().any()]
    colours = page.variant_colours(list(summary["variant"]))
    figure, panels = plt.subplots(
        1, len(costs), figsize=(page.WIDTH, 2.1), sharey=True, squeeze=False, layout="constrained"
    )
    runs = table[table["measure"] == "test_accuracy"]
    for panel, cost in zip(panels[0], costs, strict=True):
        for _, row in summary.iterrows():
            colour, x = colours[row["variant"]], row[cost]
            seeds = runs.loc[runs["variant"] == row["variant"], "value"]
            panel.plot(np.full(len(seeds), x), seeds, ".", color=colour, alpha=0.4, markersize=3)
            error = None if row["n"] < 2 else [[row["accuracy"] - row["low"]], [row["high"] - row["accuracy"]]]
            panel.errorbar(x, row["accuracy"], error, fmt="o", color=colour, markersize=4, label=row["variant"])
        panel.set_xlabel(COSTS[cost])
        panel.set_xlim(0, 1.1 * summary[cost].max())
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.xaxis.set_major_formatter(FuncFormatter(_short))
    panels[0][0].set_ylabel("test accuracy")
    runs_each = sorted(set(summary["n"]))
    seeds = f"{runs_each[0]}" if len(runs_each) == 1 else f"{runs_each[0]}–{runs_each[-1]}"
    note = ", bars: 95% interval of the mean" if runs_each[-1] > 1 else ", no interval"
    figure.suptitle(f"Accuracy against cost ({seeds} seed{'s' if runs_each[-1] > 1 else ''}{note})")
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 6), frameon=False)
    return page.save(figure, folder, "tradeoff")


def _short(value: float, _position: int) -> str:
    """1.2M for 1,200,000."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{name}"
    return f"{value:.3g}"
