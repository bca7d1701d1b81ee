"""Means over seeds beside their nulls: how they are computed from the long table, and how they are marked.

The same null looks the same in every figure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray

from analysis.figures.page import Colour
from analysis.stats import mean_interval

ESTIMATE = ["mean", "low", "high", "n", "undefined"]
TRAINED = ""  # the null of what was measured
KNOWN_NULLS = (  # in the order in which they are drawn; colours and marks go by it
    "untrained",
    "random filters",
    "arbitrary partition",
    "contiguous partition",
    "spectral partition",
    "spectral partition, sizes kept",
    "random sets",
    "labels permuted",
    "chance",
    "block areas",
)
MARKS = "sD^<vpPX>*d"
INK: Colour = (0.0, 0.0, 0.0)

Item = TypeVar("Item")


def seed_estimates(values: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean over seeds with its 95% interval, of every combination of some columns, in the order of the table.

    Args:
        values: columns ``by``, seed and value; several values of one seed are averaged first, so that the seed stays
            the unit.
        by: columns that tell the estimates apart.

    Returns:
        ``by``, mean, low, high (NaN for one seed, which has no interval), n, undefined (values left out because they
        are not finite). Combinations without a finite value are left out.
    """
    rows = []
    for key, part in values.groupby(list(by), sort=False, dropna=False):
        finite = part[np.isfinite(part["value"])]
        if len(finite):
            found = mean_interval(finite.groupby("seed", dropna=False)["value"].mean())
            rows.append((*key, found.mean, found.low, found.high, found.n, len(part) - len(finite)))
    return pd.DataFrame(rows, columns=pd.Index([*by, *ESTIMATE]))


def seeds_note(estimates: pd.DataFrame) -> str:
    """What the bars are, and what was left out, in words."""
    if estimates.empty:
        return ""
    low, high = int(estimates["n"].min()), int(estimates["n"].max())
    seeds = f"{high}" if low == high else f"{low}–{high}"
    note = "One seed: no interval." if high < 2 else f"Bars: 95% interval of the mean over {seeds} seeds."
    if low < 2 <= high:
        note += " A mark without a bar has one seed, and no interval."
    left_out = int(estimates["undefined"].sum())
    return note + (f" {left_out} undefined values are left out." if left_out else "")


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of them, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[k] for k in np.linspace(0, len(items) - 1, most).round().astype(int)]


def left_out_note(shown: int, all_of_them: int, what: str) -> str:
    """That not all are shown; empty where they are."""
    return f" {shown} of {all_of_them} {what} shown, evenly spaced." if shown < all_of_them else ""


@dataclass(frozen=True)
class Mark:
    """How one null, or what was measured, is marked."""

    colour: Colour
    marker: str
    hollow: bool

    def handle(self) -> Line2D:
        """For a legend."""
        face = "white" if self.hollow else self.colour
        return Line2D([], [], color=self.colour, marker=self.marker, markersize=4, markerfacecolor=face, linestyle="")


def marks(nulls: Iterable[str]) -> dict[str, Mark]:
    """Of each null that occurs its mark; what was measured comes first."""
    found = set(nulls)
    order = [null for null in KNOWN_NULLS if null in found] + sorted(found - {TRAINED, *KNOWN_NULLS})
    palette = sns.color_palette("colorblind")[:7]
    places = {null: k for k, null in enumerate([*KNOWN_NULLS, *sorted(found - {TRAINED, *KNOWN_NULLS})])}
    styled = {null: Mark(palette[places[null] % 7], MARKS[places[null] % len(MARKS)], True) for null in order}
    return ({TRAINED: Mark(INK, "o", False)} if TRAINED in found else {}) | styled


def without_cut(null: str) -> str:
    """A null partition whatever the number of its parts: ``arbitrary partition, 4 groups`` is an arbitrary one."""
    return re.sub(r", (\d+ groups|log:\d+)$", "", null)


def label(null: str) -> str:
    """What a legend calls it."""
    return null or "trained"


def side_by_side(count: int, width: float) -> NDArray[np.float64]:
    """Where so many marks stand around the middle of their place."""
    return width * ((np.arange(count) + 0.5) / count - 0.5)


def draw_marks(
    axes: Axes, places: ArrayLike, estimates: pd.DataFrame, mark: Mark, along: str = "x", size: float = 3.5
) -> None:
    """Estimates of one kind with their intervals, where they have one; their values run along x or y."""
    means = estimates["mean"].to_numpy()
    error = np.abs(estimates[["low", "high"]].to_numpy().T - means)  # NaN, which is not drawn, of one seed
    x, y = (means, places) if along == "x" else (places, means)
    axes.errorbar(
        x,
        y,
        xerr=error if along == "x" else None,
        yerr=error if along == "y" else None,
        fmt=mark.marker,
        color=mark.colour,
        markersize=size,
        markerfacecolor="white" if mark.hollow else mark.colour,
        markeredgewidth=0.7,
        elinewidth=0.8,
        zorder=3 if mark.hollow else 4,
    )
