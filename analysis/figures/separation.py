"""Colour and frequency of the first layer's filters by the group that reads them, and the tests of the groups."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from analysis.colour import CHROMA_AXES_2C
from analysis.figures import page
from analysis.figures.by_group import MOST_TICKS, name_rows, row_height
from analysis.figures.estimates import Mark, axis_ends, draw_side_by_side, label, marks, seed_estimates, seeds_note
from analysis.figures.saved import Saved
from analysis.nulls import LABELS_PERMUTED, TRAINED

ATTRIBUTES = {"colour_index": "colour index", "frequency": "frequency centroid (cycles per pixel)"}
TESTED = ("colour", "frequency", "orientation")
SIGNIFICANT = 0.05
GREY_FILTER = 0.3
NARROW = 4.5  # inches: a narrower figure has fewer numbers below its panels


def axis_colours(angle_O: NDArray) -> NDArray[np.float64]:
    """Return the colour (O, 3) of one end of each axis of ``colour.FirstColour``; dark grey for a grey filter (NaN)."""
    radians = np.radians(angle_O)
    ends = np.stack([np.cos(radians), np.sin(radians)], axis=1) @ CHROMA_AXES_2C
    colours = 0.5 + 0.45 * ends / np.abs(ends).max(axis=1, keepdims=True)
    return np.where(np.isnan(colours), GREY_FILTER, colours)


def filter_points(arrays: Mapping[str, Mapping[str, NDArray]]) -> pd.DataFrame:
    """Return one row per variant, filter and attribute.

    Args:
        arrays: per variant ``colour_index``, ``frequency``, ``first_colour_angle`` and ``learned`` (O,), and
            ``filter_groups`` (O,) if several groups read them.

    Returns:
        variant, filter, group (1 …), attribute, value, learned, angle (of the learned colour; NaN for a grey filter);
        filters whose value is undefined are left out.
    """
    parts = []
    for variant, a in arrays.items():
        for attribute in [name for name in ATTRIBUTES if name in a and "learned" in a]:
            values = np.asarray(a[attribute], dtype=np.float64)
            groups = a.get("filter_groups", np.zeros(len(values), dtype=np.int64)) + 1
            fixed = {"variant": variant, "attribute": attribute}
            rows = {"filter": np.arange(len(values)), "group": groups, "value": values, "learned": a["learned"]}
            rows["angle"] = a.get("first_colour_angle", np.full(len(values), np.nan))
            parts.append(pd.DataFrame({**fixed, **rows}))
    columns = pd.Index(["variant", "filter", "group", "attribute", "value", "learned", "angle"])
    if not parts:
        return pd.DataFrame(columns=columns)
    points = pd.concat(parts, ignore_index=True)[columns]
    return points[np.isfinite(points["value"])]


def group_means(points: pd.DataFrame) -> pd.Series:
    """Return the mean of the learned filters, by variant, attribute and group; groups without any are left out."""
    return points[points["learned"].astype(bool)].groupby(["variant", "attribute", "group"], sort=False)["value"].mean()


def areas(table: pd.DataFrame) -> pd.DataFrame:
    """Return the area under the curve of every attribute, with its nulls.

    Returns:
        variant, attribute (one of ``TESTED``), null, mean, low, high, n, undefined.
    """
    names = {f"separation_{attribute}_auc": attribute for attribute in TESTED}
    rows = table[table["measure"].isin(names)]
    return seed_estimates(rows.assign(attribute=rows["measure"].map(names)), ["variant", "attribute", "null"])


def verdicts(table: pd.DataFrame) -> dict[tuple[str, str], str]:
    """Return the difference of the groups by variant and attribute, with its p, or the number of seeds that split."""
    texts = {}
    for variant in dict.fromkeys(table["variant"]):
        for attribute in TESTED:
            measure = f"{attribute}_difference"
            rows = table[table["variant"] == variant]
            values = rows[(rows["measure"] == measure) & (rows["null"] == TRAINED)]["value"].dropna()
            p = rows[(rows["measure"] == f"{measure}_p") & (rows["null"] == LABELS_PERMUTED)]["value"].dropna()
            if values.empty:
                continue
            text = f"Δ {values.mean():.2g}"
            if len(p) == 1:
                text += f", p {p.iloc[0]:.2g}" if p.iloc[0] >= 0.001 else ", p < .001"
            elif len(p):
                text += f", {(p < SIGNIFICANT).sum()}/{len(p)} split"
            texts[variant, attribute] = text
    return texts


def draw(saved: Saved, folder: Path) -> list[Path]:
    """Draw a row for each variant: colour and frequency of each filter by group, and the separation of the groups.

    Args:
        saved: the long table, and the arrays of ``filter_points``.
        folder: folder for the figure.

    Returns:
        The files written; none if no variant has filters that several groups read.
    """
    table, points = saved.measures, filter_points(saved.arrays)
    if points.empty or points["group"].max() < 2:
        return []
    variants = list(dict.fromkeys(points["variant"]))
    attributes = [attribute for attribute in ATTRIBUTES if attribute in set(points["attribute"])]
    means, area, texts = group_means(points), areas(table[table["variant"].isin(variants)]), verdicts(table)
    height = row_height(len(variants))
    wide = len(attributes) + (not area.empty)
    figure, panels = plt.subplots(
        len(variants),
        wide,
        figsize=(page.WIDTH, 0.9 + height * len(variants)),
        squeeze=False,
        layout="constrained",
        width_ratios=[1] * len(attributes) + [0.9] * (wide - len(attributes)),
    )
    for column in range(len(attributes)):
        for panel in panels[1:, column]:
            panel.sharey(panels[0, column])
    styles = marks(area["null"])
    within = axis_ends(area, 0.5, 1.0) if len(area) else (0.0, 1.0)
    for row, variant in zip(panels, variants, strict=True):
        for panel, attribute in zip(row, attributes, strict=False):
            here = points[(points["variant"] == variant) & (points["attribute"] == attribute)]
            _draw_strips(panel, here, means.get((variant, attribute), pd.Series(dtype=float)))
        if not area.empty:
            _draw_areas(row[-1], area[area["variant"] == variant], styles, texts, variant, within)
    name_rows(list(panels[:, 0]), variants, height)
    for panel, attribute in zip(panels[0], attributes, strict=False):
        panel.set_title(page.wrapped(ATTRIBUTES[attribute], page.characters_that_fit(page.WIDTH / 4, 7), 3), fontsize=7)
        panels[-1, attributes.index(attribute)].set_xlabel("read by group", fontsize=7)
    if not area.empty:
        shown_areas = [panel for panel in panels[:, -1] if panel.get_visible()]
        shown_areas[0].set_title(
            page.wrapped("separation of the groups", page.characters_that_fit(page.WIDTH / 4, 7)), fontsize=7
        )
        shown_areas[-1].set_xlabel("AUC", fontsize=7)
    page.title(figure, "First-layer filters by the group that reads them")
    page.legend(figure, [mark.handle() for mark in styles.values()], [label(null) for null in styles])
    text = (
        "One dot per filter, of the first seed; faint: never left its initialisation, and not counted; line: mean of "
        "the group."
    )
    if points["angle"].notna().any():
        text += (
            " In the panel of the colour index each dot has the colour that the filter learned: one end of the axis "
            "along which it varies most (the other end is the complement); dark grey: none."
        )
    if not area.empty:
        text += (
            " Right, AUC: probability that of two filters of two groups the one of the higher group has the larger "
            "value; Δ: largest − smallest group mean, with its p under permuted labels, or the seeds with p < .05. "
        )
    page.caption(figure, text + seeds_note(area))
    return page.save(figure, folder, "separation")


def spread(values: NDArray, width: float) -> NDArray[np.float64]:
    """Return sideways offsets of dots, so that dots of about one value do not hide each other."""
    places = np.zeros(len(values))
    if len(values) < 2:
        return places
    bins = np.floor((values - values.min()) / (np.ptp(values) or 1.0) * 11.999)
    for number in np.unique(bins):
        member = np.flatnonzero(bins == number)
        places[member] = (np.arange(len(member)) - (len(member) - 1) / 2) * min(0.11, width / len(member))
    return places


def _draw_strips(panel: Axes, here: pd.DataFrame, means: pd.Series) -> None:
    groups = sorted(set(here["group"]))
    palette = sns.color_palette("colorblind" if len(groups) <= 7 else "husl", max(7, len(groups)))
    size = 5 if len(groups) <= 5 else 2.5
    y, learned = here["value"].to_numpy(), here["learned"].to_numpy(dtype=bool)
    place = here["group"].map(groups.index).to_numpy()
    x = place.astype(np.float64)
    for k in range(len(groups)):
        x[place == k] += spread(y[place == k], 0.8)
    panel.scatter(x[~learned], y[~learned], s=size, color="0.8", linewidths=0, zorder=2)
    if set(here["attribute"]) == {"colour_index"} and here["angle"].notna().any():
        colours = axis_colours(here["angle"].to_numpy(dtype=np.float64))
    else:
        colours = np.array(palette)[place]
    panel.scatter(x[learned], y[learned], s=size, c=colours[learned], linewidths=0, zorder=3)
    middles = [groups.index(group) for group in means.index]
    panel.hlines(means, np.subtract(middles, 0.4), np.add(middles, 0.4), color="black", linewidth=0.9, zorder=4)
    step = -(-len(groups) // MOST_TICKS)
    names = [str(group) for group in groups] if len(groups) > 1 else ["all"]
    panel.set_xticks(range(0, len(groups), step), names[::step])
    panel.set_xlim(-0.6, len(groups) - 0.4)
    panel.yaxis.set_major_locator(MaxNLocator(3))
    panel.yaxis.set_major_formatter("{x:.3g}")
    panel.tick_params(labelsize=6)


def _draw_areas(
    panel: Axes,
    here: pd.DataFrame,
    styles: dict[str, Mark],
    texts: Mapping[tuple[str, str], str],
    variant: str,
    within: tuple[float, float],
) -> None:
    if here.empty:
        panel.set_visible(False)
        return
    tested = [attribute for attribute in TESTED if attribute in set(here["attribute"])]
    panel.axvline(0.5, color="0.6", linewidth=0.7, zorder=1)
    panel.set_ylim(len(tested) - 0.5, -0.5)
    panel.set_yticks(range(len(tested)), tested)
    panel.set_xlim(within)
    panel.set_xticks([0.5, 0.75, 1] if page.WIDTH > NARROW else [0.5, 1])
    panel.xaxis.set_major_formatter("{x:.3g}")
    panel.tick_params(labelsize=6)
    draw_side_by_side(panel, here["attribute"].map(tested.index), here, "null", styles, "x", 3, within)
    for place, attribute in enumerate(tested):
        text = texts.get((variant, attribute), "")
        panel.text(1.03, place, text, transform=panel.get_yaxis_transform(), fontsize=5, va="center")
