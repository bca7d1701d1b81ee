"""All figures of measured networks, in the order in which they are drawn: a figure is registered here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from analysis.figures import (
    correlation,
    curves,
    equal_cost,
    filters,
    interlayer,
    lesions,
    nulls,
    overview,
    page,
    probes,
    separation,
    similarity,
    tradeoff,
)
from analysis.figures.saved import Figure, Saved

FIGURES: tuple[Figure, ...] = (
    Figure("overview", overview.draw, ("measures", "arrays", "fronts")),
    Figure("filters", filters.draw, ("arrays",)),
    Figure("separation", separation.draw, ("measures", "arrays")),
    Figure("correlation", correlation.draw, ("arrays",)),
    Figure("nulls", nulls.draw, ("measures",)),
    Figure("interlayer", interlayer.draw, ("measures", "arrays")),
    Figure("similarity", similarity.draw, ("measures",)),
    Figure("lesions", lesions.draw, ("measures", "arrays")),
    Figure("probes", probes.draw, ("measures",)),
    Figure("tradeoff", tradeoff.draw, ("measures", "fronts")),
    Figure("equal-cost", equal_cost.draw, ("measures", "runs")),
    Figure("learning-curves", curves.draw, ("curves",)),
)


def draw_all(saved: Saved, folder: Path) -> list[Path]:
    """Draw every figure whose parts are saved; returns the files written.

    Pages of an earlier drawing that were not drawn now are removed: they would show other results.
    """
    page.apply_style()
    drawn = [
        path
        for figure in FIGURES
        if all(getattr(saved, part) is not None for part in figure.needs)
        for path in figure.draw(saved, folder)
    ]
    remove_pages(folder, drawn)
    return drawn


def remove_pages(folder: Path, drawn: Sequence[Path]) -> None:
    """Remove the pages of all figures from a folder, but those that were drawn now."""
    for path in {file for figure in FIGURES for file in _pages(figure.name, folder)} - set(drawn):
        path.unlink()


def _pages(name: str, folder: Path) -> list[Path]:
    """Return the files of a figure in the formats that are drawn: correlation.png, correlation-2.png."""
    named = [path for suffix in page.FORMATS for path in folder.glob(f"{name}*.{suffix}")]
    return [path for path in named if re.fullmatch(rf"{name}(-\d+)?", path.stem)]
