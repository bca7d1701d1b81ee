"""Correlation matrices in block order, with the borders of the groups."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from analysis.figures import page


def draw(arrays: Mapping[str, Mapping[str, NDArray]], folder: Path) -> list[Path]:
    """One row per variant, one column per convolution: |r| between its filters' responses on test images.

    Columns are headed by the layer; a panel says whether its groups are those that computed the filters or read them.

    Args:
        arrays: per variant ``correlation <layer>`` (C, C), and ``groups <layer> computed`` or ``… read`` (C,) where the
            filters fall into groups.
        folder: where the figure goes.

    Returns:
        The files written; none if there is no matrix.
    """
    layers = list(dict.fromkeys(key.split()[1] for a in arrays.values() for key in a if key.startswith("correlation ")))
    if not layers:
        return []
    side = page.WIDTH / (len(layers) + 0.6)
    figure, panels = plt.subplots(
        len(arrays), len(layers), figsize=(page.WIDTH, side * len(arrays) + 0.4), squeeze=False, layout="constrained"
    )
    shown = None
    for number, (row, (name, a)) in enumerate(zip(panels, arrays.items(), strict=True)):
        row[0].set_ylabel(name, fontsize=7)
        for panel, layer in zip(row, layers, strict=True):
            panel.set(xticks=[], yticks=[])
            if f"correlation {layer}" not in a:
                panel.set_visible(False)
                continue
            matrix = np.abs(a[f"correlation {layer}"])
            way = next((w for w in ("computed", "read") if f"groups {layer} {w}" in a), None)
            if way is not None:
                labels = a[f"groups {layer} {way}"]
                order = np.argsort(labels, kind="stable")
                matrix = matrix[np.ix_(order, order)]
                borders = np.flatnonzero(np.diff(labels[order])) + 0.5
                width = min(0.8, 4 / len(borders)) if len(borders) else 0  # many groups stay visible between the lines
                for border in borders:
                    panel.axhline(border, color="deepskyblue", linewidth=width)
                    panel.axvline(border, color="deepskyblue", linewidth=width)
            shown = panel.imshow(matrix, vmin=0, vmax=1, cmap="magma", interpolation="nearest")
            title = "\n".join(part for part in ("" if number else layer, way) if part)
            panel.set_title(title, fontsize=6, pad=2)
    figure.suptitle("|r| between filters, by the group that computed or that reads them")
    if shown is not None:
        figure.colorbar(shown, ax=panels, shrink=min(0.6, 2 / len(arrays)), aspect=15, label="|r|")
    return page.save(figure, folder, "correlation")
