"""Means over seeds and their nulls: computed from the long table, and drawn as marks.

The same null looks the same in every figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray

from analysis.figures.page import Colour
from analysis.intervals import SEEDS_FOR_INTERVAL, UNBOUNDED, Bounds, measure_bounds, seed_estimate
from analysis.nulls import NULLS, TRAINED

MARGIN = 0.08  # of an axis, on either side
ESTIMATE = ["mean", "low", "high", "n", "seeds", "undefined"]
MARKS = "sD^<vpPX>*d"
INK: Colour = (0.0, 0.0, 0.0)

Item = TypeVar("Item")


def seed_estimates(values: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return the mean over seeds of every combination of some columns, in the order of the table.

    From six seeds on it has a 95% interval, within the bounds of the measure.

    Args:
        values: columns ``by``, seed and value, and measure and unit where the values have bounds; several values of
            one seed are averaged first, so that the seed stays the unit.
        by: columns whose combinations are the estimates.

    Returns:
        ``by``, mean, low, high (NaN below six seeds, which have no interval), n, seeds (the value of each), undefined
        (values left out because they are not finite). Combinations without a finite value are left out.
    """
    groups = values.groupby(list(by), sort=False, dropna=False)
    number = groups.ngroup().to_numpy()  # of its combination, for each row; a loop of pandas over them is slow
    names = list(values.loc[~groups.cumcount().to_numpy(bool), list(by)].itertuples(index=False, name=None))
    is_finite = np.isfinite(values["value"].to_numpy(float))
    undefined = np.bincount(number[~is_finite], minlength=len(names))
    number, finite = number[is_finite], values[is_finite]
    of_seeds = finite["value"].groupby([number, finite["seed"].to_numpy()], dropna=False).mean()
    present, first = np.unique(of_seeds.index.get_level_values(0), return_index=True)
    bounds = _bounds(finite, number)
    rows = []
    for k, seeds in zip(present, np.split(of_seeds.to_numpy(), first)[1:], strict=True):
        estimate = seed_estimate(seeds, bounds.get(k, UNBOUNDED))
        ends = estimate.mean, estimate.low, estimate.high
        rows.append((*names[k], *ends, estimate.n, estimate.seeds, undefined[k]))
    return pd.DataFrame(rows, columns=pd.Index([*by, *ESTIMATE]))


def _bounds(values: pd.DataFrame, number: NDArray) -> dict[int, Bounds]:
    """Return the bounds of the measures of each combination; none if the table does not name them.

    Args:
        values: columns measure and unit.
        number: (R,), of the combination that each row belongs to.
    """
    if not {"measure", "unit"} <= set(values.columns):
        return {}
    bounds: dict[int, Bounds] = {}
    named = values[["measure", "unit"]].assign(number=number).drop_duplicates()
    for measure, unit, k in named.itertuples(index=False):
        low, high = measure_bounds(str(measure), str(unit))
        least, greatest = bounds.get(k, (low, high))
        bounds[k] = min(low, least), max(high, greatest)
    return bounds


def seeds_note(estimates: pd.DataFrame) -> str:
    """Return a sentence on the bars, and on the values left out."""
    if estimates.empty:
        return ""
    low, high = int(estimates["n"].min()), int(estimates["n"].max())
    seeds = f"{high}" if low == high else f"{low}–{high}"
    if high < 2:
        note = "One seed: no interval."
    elif high < SEEDS_FOR_INTERVAL:
        note = f"Dots: the {seeds} seeds; fewer than {SEEDS_FOR_INTERVAL} have no interval."
    else:
        note = f"Bars: 95% interval of the mean over {seeds} seeds."
        if low < SEEDS_FOR_INTERVAL:
            note += f" A mark without a bar has fewer than {SEEDS_FOR_INTERVAL} seeds, its dots, and no interval."
    left_out = int(estimates["undefined"].sum())
    return note + (f" {left_out} undefined values are left out." if left_out else "")


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most ``most`` items, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[k] for k in np.linspace(0, len(items) - 1, most).round().astype(int)]


def left_out_note(drawn: int, all_of_them: int, what: str) -> str:
    """Return a sentence on the items left out; empty if all are drawn."""
    return f" {drawn} of {all_of_them} {what} drawn, evenly spaced." if drawn < all_of_them else ""


@dataclass(frozen=True)
class Mark:
    """Marker of one null, or of the trained network."""

    colour: Colour
    marker: str
    hollow: bool

    def handle(self) -> Line2D:
        """Return the entry of a legend."""
        face = "white" if self.hollow else self.colour
        return Line2D([], [], color=self.colour, marker=self.marker, markersize=4, markerfacecolor=face, linestyle="")


def marks(nulls: Iterable[str]) -> dict[str, Mark]:
    """Return the mark of each null that occurs; the trained network comes first."""
    present = set(nulls)
    order = [null for null in NULLS if null in present] + sorted(present - {TRAINED, *NULLS})
    palette = sns.color_palette("colorblind")[:7]
    places = {null: k for k, null in enumerate([*NULLS, *sorted(present - {TRAINED, *NULLS})])}
    styled = {null: Mark(palette[places[null] % 7], MARKS[places[null] % len(MARKS)], True) for null in order}
    return ({TRAINED: Mark(INK, "o", False)} if TRAINED in present else {}) | styled


def label(null: str) -> str:
    """Return the name of a null in a legend."""
    return null or "trained"


def offsets(count: int, width: float) -> NDArray[np.float64]:
    """Return the offsets of ``count`` marks around the middle of their place."""
    return width * ((np.arange(count) + 0.5) / count - 0.5)


def draw_marks(
    axes: Axes,
    places: ArrayLike,
    estimates: pd.DataFrame,
    mark: Mark,
    along: str = "x",
    size: float = 3.5,
    within: tuple[float, float] = (-np.inf, np.inf),
) -> None:
    """Draw estimates of one kind with their intervals, or with the values of their seeds; values run along x or y.

    An interval longer than the axis (``within``) ends at the axis in an arrow.
    """
    means, low, high = (estimates[column].to_numpy(float) for column in ("mean", "low", "high"))
    at = np.asarray(places)
    error = np.abs(np.stack([low, high]) - means)  # NaN, which is not drawn, of few seeds

    def plot(values: NDArray, where: NDArray, marker: str, **style: Any) -> None:
        if len(values):
            axes.plot(*((values, where) if along == "x" else (where, values)), marker, color=mark.colour, **style)

    few = (estimates["n"].to_numpy() > 1) & np.isnan(low)
    of_few = [np.asarray(seeds) for seeds in estimates["seeds"][few]] if few.any() else []
    if of_few:
        where = np.repeat(at[few], [len(seeds) for seeds in of_few])
        plot(np.concatenate(of_few), where, ".", alpha=0.5, markersize=0.55 * size, zorder=2)
    x, y = (means, at) if along == "x" else (at, means)
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
    arrows = "<>" if along == "x" else "v^"
    for edge, beyond, arrow in zip(within, (low < within[0], high > within[1]), arrows, strict=True):
        where = at[beyond]
        plot(np.full(len(where), edge), where, arrow, markersize=size, markeredgewidth=0, clip_on=False, zorder=5)


def draw_side_by_side(
    axes: Axes,
    places: ArrayLike,
    estimates: pd.DataFrame,
    series: str,
    styles: Mapping[str, Mark],
    along: str,
    size: float,
    within: tuple[float, float],
) -> None:
    """Draw estimates of several series; those of one place side by side around its middle.

    Args:
        axes: where.
        places: of each estimate, the number of its row or group.
        estimates: with ``ESTIMATE`` as columns.
        series: column that names the series.
        styles: mark of each series, in order.
        along: the axis of the values.
        size: size of the marks.
        within: ends of that axis.
    """
    at, names = np.asarray(places), estimates[series].to_numpy()
    moved = at.astype(np.float64)
    for place in np.unique(at):
        here = at == place
        order = [name for name in styles if name in set(names[here])]
        for name, offset in zip(order, offsets(len(order), 0.65), strict=True):
            moved[here & (names == name)] += offset
    for name, mark in styles.items():
        rows = names == name
        if rows.any():
            draw_marks(axes, moved[rows], estimates[rows], mark, along, size, within)


def axis_ends(estimates: pd.DataFrame, *also: float) -> tuple[float, float]:
    """Return the ends of an axis with all means and drawn seeds on it, and all intervals but the longest.

    An interval is cut where it goes beyond the means by more than these spread, or than most intervals are long.

    Args:
        estimates: with ``ESTIMATE`` as columns.
        also: values that the axis holds whatever was measured.
    """
    few = estimates[estimates["low"].isna()]
    points = np.concatenate([estimates["mean"], [value for seeds in few["seeds"] for value in seeds], also])
    low, high = points.min(), points.max()
    intervals = estimates[["low", "high"]].dropna().to_numpy()
    if len(intervals):
        room = max(high - low, float(np.median(intervals[:, 1] - intervals[:, 0])))
        low, high = (
            max(min(low, intervals[:, 0].min()), low - room),
            min(max(high, intervals[:, 1].max()), high + room),
        )
    margin = MARGIN * (high - low) or 0.5
    return float(low - margin), float(high + margin)
