"""Learning curves: mean over seeds, band of the smallest and the largest."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import MaxNLocator

from analysis.figures import page
from analysis.figures.saved import Saved

TITLES = {"train_loss": "training loss (nats)", "test_accuracy": "test accuracy"}
MARKS = 6  # markers along each curve, where there are many epochs
BANDS = 7  # maximum number of variants whose ranges are drawn: more would hide each other


def by_epoch(curves: pd.DataFrame, variant: str, measure: str) -> pd.DataFrame:
    """Return mean, smallest and largest value over a variant's seeds, by epoch; epochs without a value are left out."""
    rows = curves[curves["variant"] == variant].dropna(subset=[measure])
    return rows.groupby("epoch")[measure].agg(["mean", "min", "max"])


def draw(saved: Saved, folder: Path) -> list[Path]:
    """Draw training loss and test accuracy by epoch.

    Args:
        saved: curves with the columns variant, seed, epoch, train_loss, test_accuracy (NaN in epochs without
            evaluation).
        folder: folder for the figure.
    """
    curves = saved.curves
    if curves is None or curves.empty:
        return []
    styles = page.variant_styles(list(dict.fromkeys(curves["variant"])))
    height = 2.1 + 0.13 * max(0, -(-len(styles) // 3) - 2)
    figure, panels = plt.subplots(1, 2, figsize=(page.WIDTH, height), layout="constrained")
    banded = len(styles) <= BANDS
    for panel, (measure, title) in zip(panels, TITLES.items(), strict=True):
        for variant, style in styles.items():
            band = by_epoch(curves, variant, measure)
            panel.plot(
                band.index,
                band["mean"],
                style.line,
                color=style.colour,
                label=variant,
                marker=style.marker,
                markersize=2.5,
                markevery=max(1, len(band) // MARKS),
                linewidth=0.9,
            )
            if banded:
                panel.fill_between(band.index, band["min"], band["max"], color=style.colour, alpha=0.2, linewidth=0)
        panel.set(xlabel="epoch", ylabel=title)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    seeds = curves["seed"].nunique()
    spread = "band: range" if banded else f"no ranges of more than {BANDS} variants"
    page.title(figure, f"Learning curves (mean of {seeds} seeds, {spread})" if seeds > 1 else "Learning curves")
    page.legend(figure, *panels[0].get_legend_handles_labels())
    return page.save(figure, folder, "learning-curves")
