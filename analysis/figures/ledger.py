"""The ledger of claims as one forest plot: each effect in units of the smallest effect of interest."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.figures import page

ROW = 0.19  # inches
REACH = 4.0  # units on either side; longer intervals end in an arrow
STYLES = {  # verdict: place in the palette, marker, hollow
    "supported": (0, "o", False),
    "contradicted": (3, "X", False),
    "inconclusive": (7, "o", True),
    "holds by construction": (2, "s", True),
}


def draw(rows: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw one row per claim that was measured.

    Args:
        rows: number, short, verdict, effect, low, high (the interval, NaN without one), n (NaN where nothing is per
            seed), study and equal (whether the claim is that there is nothing, so that it is supported inside the
            margin). Effects are in units of the smallest effect of interest, above 0 in the claimed direction.
        folder: folder for the figure.

    Returns:
        The files written; none without rows.
    """
    if rows.empty:
        return []
    page.apply_style()
    rows = rows.reset_index(drop=True)
    places = np.arange(len(rows))
    figure, axes = plt.subplots(figsize=(page.WIDTH, 0.9 + ROW * len(rows)), layout="constrained")
    axes.axvspan(-1, 1, color="0.94", zorder=0)
    axes.axvline(0, color="0.4", linewidth=0.7, zorder=1)
    numbers = rows[["effect", "low", "high"]].to_numpy(float)
    for place, (effect, low, high), verdict in zip(range(len(rows)), numbers, rows["verdict"], strict=True):
        _draw_row(axes, place, effect, low, high, verdict)
    names = page.short_names([f"{row.number}  {row.short}" for row in rows.itertuples()], 52)
    marks = ["  =" if equal else "" for equal in rows["equal"]]
    axes.set_yticks(places, [f"{name}{mark}" for name, mark in zip(names.values(), marks, strict=True)], fontsize=6.5)
    axes.set(xlim=(-REACH, REACH), ylim=(len(rows) - 0.4, -0.6))
    axes.set_xlabel("effect / smallest effect of interest, in the claimed direction", fontsize=7)
    axes.tick_params(axis="x", labelsize=6.5)
    axes.tick_params(axis="y", length=0)
    right = axes.secondary_yaxis("right")
    counted = ["" if np.isnan(n) else f", n {n:.0f}" for n in rows["n"].to_numpy(float)]
    studies = [f"{study}{n}" for study, n in zip(rows["study"], counted, strict=True)]
    right.set_yticks(places, studies, fontsize=6)
    right.tick_params(axis="y", length=0)
    right.spines["right"].set_visible(False)
    sns.despine(ax=axes, left=True)
    page.title(figure, "Claims of the literature: effect, 95% interval, verdict")
    present = [verdict for verdict in STYLES if verdict in set(rows["verdict"])]
    page.legend(figure, [_handle(verdict) for verdict in present], present)
    page.caption(
        figure,
        "0: no effect; 1: the smallest effect of interest. Grey: effects smaller than that. =: the claim "
        "is that there is no difference, or no gain, and is supported inside the grey. Arrow: it goes on "
        "beyond the axis. No interval: fewer than two seeds, or a count. A claim with several parts has one "
        "row, for the part that decides. n: seeds.",
    )
    return page.save(figure, folder, "ledger")


def _draw_row(axes: Axes, place: int, effect: float, low: float, high: float, verdict: str) -> None:
    """Draw one effect with its interval; an arrow where either goes on beyond the axis."""
    colour, marker, hollow = STYLES[verdict]
    ink = sns.color_palette("colorblind")[colour]
    if np.isfinite([low, high]).all():
        ends = np.clip([low, high], -REACH, REACH)
        axes.plot(ends, [place, place], color=ink, linewidth=1.0, solid_capstyle="butt", zorder=2)
    for edge, arrow, beyond in (
        (-REACH, "<", min(effect, np.nan_to_num(low))),
        (REACH, ">", max(effect, np.nan_to_num(high))),
    ):
        if abs(beyond) > REACH and np.sign(beyond) == np.sign(edge):
            axes.plot(edge, place, arrow, color=ink, markersize=4, clip_on=False, zorder=4)
    if abs(effect) <= REACH:
        face = "white" if hollow else ink
        axes.plot(effect, place, marker, color=ink, markerfacecolor=face, markersize=5, zorder=3)


def _handle(verdict: str) -> Line2D:
    colour, marker, hollow = STYLES[verdict]
    ink = sns.color_palette("colorblind")[colour]
    return Line2D([], [], color=ink, marker=marker, markersize=5, markerfacecolor="white" if hollow else ink)
