"""Similarity between the groups of a layer, against its nulls."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.figures import forest
from analysis.figures.estimates import evenly, left_out_note, seed_estimates, seeds_note
from analysis.figures.forest import Quantity
from analysis.figures.saved import Saved
from analysis.nulls import without_cut

LAYERS = 6  # side by side, at most
SIMILARITIES = {
    "cka_between": "CKA",
    "cca_between": "mean CCA",
    "pwcca_between": "PWCCA",
    "procrustes_between": "Procrustes",
}


def similarities(table: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over seeds of every similarity between groups.

    Returns:
        variant, layer, quantity, null, groups, mean, low, high, n, undefined.
    """
    rows = table[table["measure"].isin(SIMILARITIES)]
    rows = rows.assign(quantity=rows["measure"].map(SIMILARITIES), null=rows["null"].map(without_cut))
    return seed_estimates(rows, ["variant", "layer", "quantity", "null", "groups"])


def draw(saved: Saved, folder: Path) -> list[Path]:
    """Draw one row of panels for each similarity, one panel for each layer, a line for each variant.

    Args:
        saved: the long table.
        folder: folder for the figure.

    Returns:
        The files written; none if no similarity was measured.
    """
    cells = similarities(saved.measures)
    if cells.empty:
        return []
    layers = list(dict.fromkeys(cells["layer"]))
    drawn = evenly(layers, LAYERS)
    cells = cells[cells["layer"].isin(drawn)].rename(columns={"layer": "column"})
    order = [variant for variant in dict.fromkeys(saved.measures["variant"]) if variant in set(cells["variant"])]
    cells = cells.sort_values("variant", key=lambda names: names.map(order.index), kind="stable")
    quantities = [Quantity(name) for name in SIMILARITIES.values() if name in set(cells["quantity"])]
    caption = (
        "Mean over all pairs of groups of a layer; arbitrary partition: of a layer into parts that it was not trained "
        "with, a mark for each number of parts. Groups differ where the trained value is below that of the nulls. "
        ""
        f"{seeds_note(cells)}{left_out_note(len(drawn), len(layers), 'layers')}"
    )
    return forest.draw(cells, quantities, drawn, "Similarity between groups", caption, folder, "similarity")
