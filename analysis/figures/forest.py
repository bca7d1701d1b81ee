"""Forest plot: small panels with a line for each variant, its value as a dot, and its nulls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from analysis.figures import page
from analysis.figures.estimates import Mark, axis_ends, draw_side_by_side, label, marks


@dataclass(frozen=True)
class Quantity:
    """A row of panels.

    Attributes:
        name: label of the row.
        zero: where nothing would be found; a line is drawn there. None where there is no such value.
    """

    name: str
    zero: float | None = None


def draw(
    cells: pd.DataFrame,
    quantities: Sequence[Quantity],
    columns: Sequence[str],
    title: str,
    caption: str,
    folder: Path,
    name: str,
) -> list[Path]:
    """Draw panels of quantities (down) and columns (across); the variants share the lines of all panels.

    Args:
        cells: quantity, column, variant, null, mean, low, high, n; one row per mark.
        quantities: rows of panels; the panels of a row share their axis.
        columns: headings of the panels.
        title: title of the figure.
        caption: text below the figure: how to read it.
        folder: folder for the figure.
        name: name of the files, without suffix.
    """
    variants = list(dict.fromkeys(cells["variant"]))
    styles = marks(cells["null"])
    line = min(0.3, (page.HEIGHT - 1 - 0.5 * len(quantities)) / (len(quantities) * len(variants)))
    of_row = [_variants(cells, quantity) for quantity in quantities]
    heights = [line * len(row_variants) + 0.3 for row_variants in of_row]
    figure, panels = plt.subplots(
        len(quantities),
        len(columns),
        figsize=(page.WIDTH, 0.8 + sum(heights)),
        height_ratios=heights,
        sharex="row",
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    names = page.short_names(variants, 22)
    longest = max(map(len, names.values()))
    width = (page.WIDTH - page.CHARACTER * 6.5 * longest) / len(columns) - 0.1
    for row, quantity, row_variants, height in zip(panels, quantities, of_row, heights, strict=True):
        of_quantity = cells[cells["quantity"] == quantity.name]
        within = axis_ends(of_quantity, *([] if quantity.zero is None else [quantity.zero]))
        for panel, column in zip(row, columns, strict=True):
            here = of_quantity[of_quantity["column"] == column]
            _draw_panel(panel, here, row_variants, styles, quantity, within, 3.5 if line > 0.2 else 2.5)
            panel.set_xlim(within)
            panel.xaxis.set_major_locator(MaxNLocator(2 if width < 1 else 4))
            panel.xaxis.set_major_formatter("{x:.3g}")
            panel.tick_params(labelsize=6)
        row[0].set_ylabel(page.wrapped(quantity.name, page.characters_that_fit(height, 7), 3), fontsize=7)
        row[0].set_yticks(range(len(row_variants)), [names[variant] for variant in row_variants], fontsize=6.5)
        row[0].set_ylim(len(row_variants) - 0.5, -0.5)
    for panel, column in zip(panels[0], columns, strict=True):
        panel.set_title(page.wrapped(column, page.characters_that_fit(width, 6.5), 3), fontsize=6.5)
    page.title(figure, title)
    page.legend(figure, [mark.handle() for mark in styles.values()], [label(null) for null in styles])
    page.caption(figure, caption)
    return page.save(figure, folder, name)


def _variants(cells: pd.DataFrame, quantity: Quantity) -> list[str]:
    """Return the variants of which a quantity was measured."""
    return list(dict.fromkeys(cells.loc[cells["quantity"] == quantity.name, "variant"]))


def _draw_panel(
    panel: Axes,
    here: pd.DataFrame,
    variants: list[str],
    styles: dict[str, Mark],
    quantity: Quantity,
    within: tuple[float, float],
    size: float,
) -> None:
    if here.empty:
        panel.text(0.5, 0.5, "not\nmeasured", transform=panel.transAxes, fontsize=6, color="0.5", ha="center")
        panel.tick_params(bottom=False, labelbottom=False)
        return
    if quantity.zero is not None:
        panel.axvline(quantity.zero, color="0.6", linewidth=0.7, zorder=1)
    for border in range(1, len(variants)):
        panel.axhline(border - 0.5, color="0.9", linewidth=0.5, zorder=0)
    draw_side_by_side(panel, here["variant"].map(variants.index), here, "null", styles, "x", size, within)
