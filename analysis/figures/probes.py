"""Scores of linear probes of each group, against those of random sets of as many filters."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from analysis.figures import page
from analysis.figures.by_group import draw_panel, name_rows, of_group, row_height
from analysis.figures.estimates import axis_ends, label, marks, seed_estimates, seeds_note
from analysis.figures.saved import Saved
from analysis.nulls import CHANCE

PATTERN = r"probe_(?P<target>.+)_group_(?P<group>\d+)"


def scores(table: pd.DataFrame) -> pd.DataFrame:
    """Return the score of the probe of every group for every target.

    Returns:
        variant, layer, target, group, series (the null; empty for the group), unit, mean, low, high, n, undefined.
    """
    rows = of_group(table, PATTERN).rename(columns={"null": "series"})
    return seed_estimates(rows, ["variant", "layer", "target", "group", "series", "unit"])


def draw(saved: Saved, folder: Path) -> list[Path]:
    """Draw a row for each variant, a column for each target; the panels of a column share their axis.

    Args:
        saved: the long table.
        folder: folder for the figure.

    Returns:
        The files written; none if no group was probed.
    """
    table = scores(saved.measures)
    if table.empty:
        return []
    rows = list(dict.fromkeys(table[["variant", "layer"]].itertuples(index=False, name=None)))
    targets = list(dict.fromkeys(table["target"]))
    height = row_height(len(rows))
    figure, panels = plt.subplots(
        len(rows),
        len(targets),
        figsize=(page.WIDTH, 0.9 + height * len(rows)),
        sharey="col",
        squeeze=False,
        layout="constrained",
    )
    styles = {series: mark for series, mark in marks(table["series"]).items() if series != CHANCE}
    ends = {target: axis_ends(table[table["target"] == target]) for target in targets}
    for row, (variant, layer) in zip(panels, rows, strict=True):
        for panel, target in zip(row, targets, strict=True):
            chosen = (table["variant"] == variant) & (table["layer"] == layer) & (table["target"] == target)
            here = table[chosen]
            for chance in set(here.loc[here["series"] == CHANCE, "mean"]):
                panel.axhline(chance, color="0.5", linewidth=0.7, linestyle=":", zorder=1)
            draw_panel(panel, here[here["series"] != CHANCE], styles, ends[target])
    several = len({layer for _, layer in rows}) > 1
    names = [f"{variant}, {layer}" if several else variant for variant, layer in rows]
    name_rows(list(panels[:, 0]), names, height)
    for panel, target in zip(panels[0], targets, strict=True):
        unit = next(iter(table.loc[table["target"] == target, "unit"]))
        panel.set_title(
            page.wrapped(
                f"{target} ({unit})" if unit else target,
                page.characters_that_fit(page.WIDTH / (len(targets) + 0.5), 7),
                3,
            ),
            fontsize=7,
        )
    for panel in panels[-1]:
        panel.set_xlabel("group", fontsize=7)
    page.title(figure, "Linear probes of each group")
    page.legend(figure, [mark.handle() for mark in styles.values()], [label(series) for series in styles])
    where = "" if several else f" of {rows[0][1]}"
    page.caption(
        figure,
        f"Score of the filters{where} of one group, on images that the probe was not fitted to; random sets: the mean "
        f"over sets of as many filters from all groups. Dotted: the score of a guess. {seeds_note(table)}",
    )
    return page.save(figure, folder, "probes")
