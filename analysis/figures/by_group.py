"""Panels of a page by group: a row for each variant, its groups along the axis, with their nulls."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis.figures import page
from analysis.figures.estimates import Mark, draw_side_by_side

MOST_TICKS = 8  # group numbers below a panel


def row_height(rows: int) -> float:
    """Return the height in inches of one of ``rows`` rows of panels on a page."""
    return min(0.95, (page.HEIGHT - 1.2) / rows)


def of_group(table: pd.DataFrame, pattern: str) -> pd.DataFrame:
    """Return the rows whose measure is that of a group.

    Args:
        table: long table.
        pattern: of the whole name of a measure, with named places, ``group`` a number among them.

    Returns:
        These rows, with a column for each place.
    """
    rows = table.reset_index(drop=True)
    rows = rows.join(rows["measure"].str.extract(f"^{pattern}$"))
    return rows[rows["group"].notna()].astype({"group": int})


def draw_panel(panel: Axes, here: pd.DataFrame, styles: dict[str, Mark], within: tuple[float, float]) -> None:
    """Draw groups along x, one mark for each series of each group.

    Args:
        panel: where.
        here: group (1 …), series, mean, low, high, n.
        styles: mark of each series, in order from left to right.
        within: ends of the axis of the values.
    """
    groups = sorted({int(group) for group in here["group"]})
    if not groups:
        panel.text(0.5, 0.5, "not measured", transform=panel.transAxes, fontsize=6, color="0.5", ha="center")
        panel.set_xticks([])
        return
    size = 3 if len(groups) <= 8 else 2
    draw_side_by_side(panel, here["group"].map(groups.index), here, "series", styles, "y", size, within)
    step = -(-len(groups) // MOST_TICKS)
    panel.set_xticks(range(0, len(groups), step), [str(group) for group in groups[::step]])
    panel.set_xlim(-0.6, len(groups) - 0.4)
    for border in range(1, len(groups)):
        panel.axvline(border - 0.5, color="0.92", linewidth=0.5, zorder=0)
    panel.set_ylim(within)
    panel.yaxis.set_major_locator(MaxNLocator(3))
    panel.yaxis.set_major_formatter("{x:.3g}")
    panel.tick_params(labelsize=6)


def name_rows(first: Sequence[Axes], names: Sequence[str], height: float) -> None:
    """Write the name of each row at the left of its first panel, along it."""
    short = page.short_names(names, 3 * page.characters_that_fit(height, 6.5))
    for panel, name in zip(first, names, strict=True):
        panel.set_ylabel(page.wrapped(short[name], page.characters_that_fit(height, 6.5), 3), fontsize=6.5)
