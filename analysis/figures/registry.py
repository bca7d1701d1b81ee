"""All figures of measured networks, in the order in which they are drawn: a figure is registered here."""

from __future__ import annotations

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
    Figure(overview.draw, ("measures", "arrays", "fronts")),
    Figure(filters.draw, ("arrays",)),
    Figure(separation.draw, ("measures", "arrays")),
    Figure(correlation.draw, ("arrays",)),
    Figure(nulls.draw, ("measures",)),
    Figure(interlayer.draw, ("measures", "arrays")),
    Figure(similarity.draw, ("measures",)),
    Figure(lesions.draw, ("measures", "arrays")),
    Figure(probes.draw, ("measures",)),
    Figure(tradeoff.draw, ("measures", "fronts")),
    Figure(equal_cost.draw, ("measures", "runs")),
    Figure(curves.draw, ("curves",)),
)


def draw_all(saved: Saved, folder: Path) -> list[Path]:
    """Draw every figure whose parts are saved; returns the files written."""
    page.apply_style()
    return [
        path
        for figure in FIGURES
        if all(getattr(saved, part) is not None for part in figure.needs)
        for path in figure.draw(saved, folder)
    ]
