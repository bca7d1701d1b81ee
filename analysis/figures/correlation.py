"""Correlation matrices in block order, with the borders of the groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from analysis.figures import matrices
from analysis.figures.estimates import evenly, left_out_note
from analysis.figures.matrices import Matrix
from analysis.figures.saved import Saved

LAYERS = 12  # at most
TITLE = "|r| between filters, by the group that computed or that reads them"
CAPTION = (
    "Responses to test images of the first seed; every layer's filters in the order of their groups, lines between."
)


def draw(saved: Saved, folder: Path) -> list[Path]:
    """Draw one row per variant, one column per convolution: |r| between its filters' responses on test images.

    Columns are headed by the layer and by which groups sort its filters, those that computed or those that read them;
    if that differs between variants, each panel names it.

    Args:
        saved: per variant the arrays ``correlation <layer>`` (C, C), and ``groups <layer> computed`` or ``… read``
            (C,) where the filters are in groups.
        folder: folder for the figure.

    Returns:
        The files written; none if there is no matrix.
    """
    arrays = saved.arrays
    matrices_by_place = {
        (variant, key.split(" ", 1)[1]): _matrix(a, key.split(" ", 1)[1])
        for variant, a in arrays.items()
        for key in a
        if key.startswith("correlation ")
    }
    if not matrices_by_place:
        return []
    layers = list(dict.fromkeys(layer for _, layer in matrices_by_place))
    drawn = evenly(layers, LAYERS)
    variants = [variant for variant in arrays if any((variant, layer) in matrices_by_place for layer in drawn)]
    ways = {
        layer: {m.title for (_, column), m in matrices_by_place.items() if column == layer and m.title}
        for layer in drawn
    }
    headings = {layer: f"{layer}, {next(iter(way))[0]}" if len(way) == 1 else layer for layer, way in ways.items()}
    panels = {
        (variant, headings[layer]): replace(matrix, title=() if len(ways[layer]) == 1 else matrix.title)
        for (variant, layer), matrix in matrices_by_place.items()
        if layer in headings
    }
    caption = CAPTION + left_out_note(len(drawn), len(layers), "layers")
    return matrices.draw(
        variants, list(headings.values()), panels, (1.0, "|r|"), (TITLE, caption), folder, "correlation"
    )


def _matrix(a: Mapping[str, NDArray], layer: str) -> Matrix:
    way = next((w for w in ("computed", "read") if f"groups {layer} {w}" in a), "")
    labels = a.get(f"groups {layer} {way}")
    return Matrix(np.abs(a[f"correlation {layer}"]), labels, labels, (way,) if way else ())
