"""Fall of the accuracy without each group, on colour images and on grey ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray

from analysis.figures import page
from analysis.figures.by_group import draw_panel, name_rows, of_group, row_height
from analysis.figures.estimates import Mark, axis_ends, seed_estimates, seeds_note
from analysis.figures.saved import Saved
from analysis.nulls import TRAINED

PATTERN = r"lesion_(?P<replacement>zero|mean)_group_(?P<group>\d+)_on_(?P<images>colour|grey)"
REPLACEMENTS = {"zero": "silenced", "mean": "mean instead"}
COLOURS = {"colour": (0.84, 0.37, 0.0), "grey": (0.4, 0.4, 0.4)}


def styles(falls_by_series: pd.Series) -> dict[str, Mark]:
    """Return the mark of each series: colour by images, nulls hollow; a group comes before its nulls."""
    order = sorted(
        set(falls_by_series), key=lambda series: (series.endswith("grey images"), not series.startswith("group,"))
    )
    return {
        series: Mark(COLOURS["grey" if series.endswith("grey images") else "colour"], "so"[plain], not plain)
        for series in order
        for plain in [series.startswith("group,")]
    }


def drops(table: pd.DataFrame) -> pd.DataFrame:
    """Return the fall of the accuracy without each group.

    Returns:
        variant, layer, replacement, group, series (``group, colour images``, …), mean, low, high, n, undefined.
    """
    rows = of_group(table, PATTERN)
    who = rows["null"].where(rows["null"] != TRAINED, "group")
    rows = rows.assign(series=who + ", " + rows["images"] + " images")
    return seed_estimates(rows, ["variant", "layer", "replacement", "group", "series"])


def draw(saved: Saved, folder: Path) -> list[Path]:
    """Draw a row for each variant: the falls by group for both replacements, and the fall of each class.

    Args:
        saved: the long table, and per variant the array ``lesion mean classes`` (G, classes).
        folder: folder for the figure.

    Returns:
        The files written; none if no group was silenced.
    """
    table = drops(saved.measures)
    if table.empty:
        return []
    variants, looks = list(dict.fromkeys(table["variant"])), styles(table["series"])
    height = row_height(len(variants))
    figure, panels = plt.subplots(
        len(variants),
        3,
        figsize=(page.WIDTH, 0.9 + height * len(variants)),
        squeeze=False,
        layout="constrained",
        width_ratios=[1, 1, 1.1],
    )
    maps = {variant: saved.arrays.get(variant, {}).get("lesion mean classes") for variant in variants}
    largest = max((float(np.nanmax(np.abs(falls))) for falls in maps.values() if falls is not None), default=0.0) or 1.0
    image = None
    for row, variant in zip(panels, variants, strict=True):
        row[1].sharey(row[0])
        within = axis_ends(table[table["variant"] == variant], 0.0)
        for panel, replacement in zip(row, REPLACEMENTS, strict=False):
            chosen = (table["variant"] == variant) & (table["replacement"] == replacement)
            panel.axhline(0, color="0.6", linewidth=0.7, zorder=1)
            draw_panel(panel, table[chosen], looks, within)
        row[1].tick_params(labelleft=False)
        falls = maps[variant]
        if falls is None:
            row[2].set_visible(False)
            continue
        image = row[2].imshow(falls, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto", interpolation="nearest")
        step = -(-len(falls) // 8)
        row[2].set_yticks(range(0, len(falls), step), [str(group + 1) for group in range(0, len(falls), step)])
        row[2].set_xticks([])
        row[2].tick_params(labelsize=6)
    name_rows(list(panels[:, 0]), variants, height)
    for panel, replacement in zip(panels[0], REPLACEMENTS.values(), strict=False):
        panel.set_title(page.wrapped(replacement, page.characters_that_fit(page.WIDTH / 4, 7)), fontsize=7)
    if image is not None:
        _title_classes(figure, panels[:, 2], maps, image)
    for panel in panels[-1, :2]:
        panel.set_xlabel("group", fontsize=7)
    page.title(figure, "Fall of the test accuracy without a group")
    page.legend(figure, [mark.handle() for mark in looks.values()], list(looks))
    layers = ", ".join(dict.fromkeys(table["layer"]))
    page.caption(
        figure,
        f"The filters of {layers} that one group reads, set to zero or to their mean; hollow: as many filters whatever "
        f"their group. {seeds_note(table)} Right: the fall of each class, a row for each group, of the first seed.",
    )
    return page.save(figure, folder, "lesions")


def _title_classes(figure: Figure, panels: NDArray, maps: Mapping[str, NDArray | None], image: AxesImage) -> None:
    visible = [panel for panel in panels if panel.get_visible()]
    count = next(falls.shape[1] for falls in maps.values() if falls is not None)
    visible[0].set_title(
        page.wrapped(f"{count} classes, mean instead", page.characters_that_fit(page.WIDTH / 4, 7)), fontsize=7
    )
    bar = figure.colorbar(image, ax=list(panels), aspect=25, shrink=min(1.0, 3 / len(panels)))
    bar.set_label("fall of the class's accuracy", fontsize=6)
    bar.ax.tick_params(labelsize=6)
