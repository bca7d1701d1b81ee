"""Learning curves: mean over seeds, band of the smallest and the largest."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.ticker import MaxNLocator

from analysis.figures import page


def draw(curves: pd.DataFrame, folder: Path) -> list[Path]:
    """Training loss and test accuracy by epoch.

    Args:
        curves: columns variant, seed, epoch, train_loss, test_accuracy (NaN in epochs without evaluation).
        folder: where the figure goes.
    """
    if curves.empty:
        return []
    colours = page.variant_colours(list(dict.fromkeys(curves["variant"])))
    figure, panels = plt.subplots(1, 2, figsize=(page.WIDTH, 2.1), layout="constrained")
    for panel, (measure, title) in zip(
        panels, {"train_loss": "training loss (nats)", "test_accuracy": "test accuracy"}.items(), strict=True
    ):
        for variant, colour in colours.items():
            rows = curves[curves["variant"] == variant].dropna(subset=[measure])
            by_epoch = rows.groupby("epoch")[measure].agg(["mean", "min", "max"])
            panel.plot(by_epoch.index, by_epoch["mean"], color=colour, label=variant, marker=".", markersize=3)
            panel.fill_between(by_epoch.index, by_epoch["min"], by_epoch["max"], color=colour, alpha=0.2, linewidth=0)
        panel.set(xlabel="epoch", ylabel=title)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    seeds = curves["seed"].nunique()
    figure.suptitle(f"Learning curves (mean of {seeds} seeds, band: range)" if seeds > 1 else "Learning curves")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 6), frameon=False)
    return page.save(figure, folder, "learning-curves")
