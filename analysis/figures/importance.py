"""Importance of each parameter of a sweep, and its direction."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from analysis.figures import page
from analysis.importance import CUTS, RELIABLE_FROM

ROW = 0.3  # inches


def draw(table: pd.DataFrame, metric: str, folder: Path) -> list[Path]:
    """Draw bars of importance, and rank correlations to their right.

    Args:
        table: as ``analysis.importance.parameter_importance`` returns it.
        metric: name of the predicted metric.
        folder: folder for the figure.

    Returns:
        The files written; none for an empty table.
    """
    if table.empty:
        return []
    page.apply_style()
    table = table.iloc[::-1]
    n, explained = int(table["n"].iloc[0]), float(table["explained"].iloc[0])
    names = list(page.short_names([str(name) for name in table["parameter"]], 24).values())
    rows = np.arange(len(table))
    blue, orange = sns.color_palette("colorblind")[0], sns.color_palette("colorblind")[1]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(page.WIDTH, 0.9 + ROW * len(table)), sharey=True, layout="constrained"
    )
    middle = table["importance"].to_numpy(float)
    spread = np.abs(table[["low", "high"]].to_numpy(float).T - middle)
    left.barh(rows, middle, height=0.6, color=blue, xerr=spread, error_kw={"lw": 0.8, "ecolor": "0.25"})
    left.axvline(0, color="0.4", lw=0.6)
    left.set(yticks=rows, yticklabels=names, xlabel="importance (share of variance)")
    left.set_title(f"lost in predicting {metric}")
    correlation = table["correlation"].to_numpy(float)
    right.barh(rows, np.nan_to_num(correlation), height=0.6, color=[blue if c >= 0 else orange for c in correlation])
    for row in rows[np.isnan(correlation)]:
        right.text(0.03, row, "categories have no ranks", fontsize=6, va="center", color="0.4")
    right.axvline(0, color="0.4", lw=0.6)
    right.set(xlim=(-1, 1), xlabel="rank correlation (Spearman)")
    right.set_title(f"with {metric}")
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
        sns.despine(ax=axes, left=True)
    doubt = f" With fewer than {RELIABLE_FROM} runs neither is reliable." if n < RELIABLE_FROM else ""
    share = f"The forest predicts {explained:.0%} of the variance."
    blind = "The forest predicts no better than the mean, so that the importances say nothing."
    page.caption(
        figure,
        f"{n} runs that came to their end. Left: increase of the squared error of a random forest, in shares of the "
        f"variance of {metric}, when a parameter's values are exchanged for those of other runs; on runs that it was "
        f"not fitted to; whiskers: range over {CUTS} ways to cut the runs into folds. "
        f"{share if explained > 0 else blind}{doubt}",
    )
    return page.save(figure, folder, "importance")
