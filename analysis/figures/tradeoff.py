"""Accuracy against cost, with intervals over seeds and the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import Formatter, MaxNLocator

from analysis.figures import page
from analysis.figures.page import Style
from analysis.figures.saved import Saved
from analysis.intervals import SEEDS_FOR_INTERVAL
from analysis.tradeoff import COSTS, MORE_COSTS, disturbed, tradeoff_table

SHOWN = {**COSTS, **{cost: MORE_COSTS[cost] for cost in ("peak_memory", "energy")}}
COLUMNS = 3
SOMETIMES = 0.05  # share of resamplings from which a variant counts as sometimes on the front


def costs_shown(summary: pd.DataFrame) -> list[str]:
    """Return the costs that were measured."""
    return [cost for cost in SHOWN if (summary[cost] > 0).any()]


def draw(saved: Saved, folder: Path) -> list[Path]:
    """Draw one panel per cost; each variant a point with its 95% interval, and every seed a faint dot.

    Variants on the Pareto front are ringed; a dotted ring means in some resamplings of seeds and times alone.

    Args:
        saved: the long table and the Pareto fronts.
        folder: folder for the figure.
    """
    table, summary = saved.measures, tradeoff_table(saved.measures)
    if summary.empty or saved.fronts is None:
        return []
    costs = costs_shown(summary)
    if not costs:
        return []
    styles = page.variant_styles(list(summary["variant"]))
    wide = 2 if len(costs) == 4 else min(COLUMNS, len(costs))
    deep = -(-len(costs) // wide)
    lines = -(-len(summary) // 3)
    figure, grid = plt.subplots(
        deep,
        wide,
        figsize=(page.WIDTH, 0.5 + 1.5 * deep + 0.15 * lines),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    panels = grid.ravel()
    for panel in panels[len(costs) :]:
        panel.set_visible(False)
    runs = table[table["measure"] == "test_accuracy"]
    notes: list[str] = []
    dotted = False
    for panel, cost in zip(panels, costs, strict=False):
        front = saved.fronts[saved.fronts["cost"] == cost]
        notes += [f"{note[0].upper()}{note[1:]}." for note in front["note"].fillna("") if note]
        dotted |= _draw_front(panel, front)
        for _, row in summary.iterrows():
            draw_variant(panel, row, cost, runs.loc[runs["variant"] == row["variant"], "value"], styles)
        panel.set_xlabel(
            page.wrapped(SHOWN[cost].replace("(bytes)", "(MB)"), page.characters_that_fit(page.WIDTH / wide - 0.4, 7)),
            fontsize=7,
        )
        panel.margins(y=0.12)
        panel.set_xlim(_ends(summary, cost))
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.xaxis.set_major_formatter(_Short(1e-6 if "bytes" in SHOWN[cost] else 1.0))
    for row in grid:
        row[0].set_ylabel("test accuracy")
    page.title(figure, f"Accuracy against cost ({_seeds(summary)})")
    handles, names = panels[0].get_legend_handles_labels()
    page.legend(figure, handles, names)
    text = "Ringed: on the Pareto front of the means (no other is as cheap and as accurate, and better in one)."
    if dotted:
        text += f" Dotted: not on it, but in {SOMETIMES:.0%} or more of the resamplings of seeds and times."
    if "latency" in costs:
        text += " Horizontal bars: the middle half of the timed calls."
    if loud := disturbed(table):
        text += f" Other work disturbed the timing of {', '.join(loud)}."
    page.caption(figure, " ".join([text, *dict.fromkeys(notes)]))
    return page.save(figure, folder, "tradeoff")


def _ends(summary: pd.DataFrame, cost: str) -> tuple[float, float]:
    """Return the ends of the axis of a cost: from zero, unless more than half of the axis were empty."""
    columns = [column for column in (cost, f"{cost}_lower", f"{cost}_upper") if column in summary]
    least, most = float(summary[columns].min().min()), float(summary[columns].max().max())
    room = 0.1 * (most - least)
    return (0.0, 1.1 * most) if least <= most / 2 or not room else (least - room, most + room)


def _seeds(summary: pd.DataFrame) -> str:
    least, most = int(summary["n"].min()), int(summary["n"].max())
    seeds = f"{least}" if least == most else f"{least}–{most}"
    few = f", dots; no interval of fewer than {SEEDS_FOR_INTERVAL}" if most > 1 else ", no interval"
    note = ", bars: 95% interval of the mean" if most >= SEEDS_FOR_INTERVAL else few
    return f"{seeds} seed{'s' if most > 1 else ''}{note}"


def _draw_front(panel: Axes, front: pd.DataFrame) -> bool:
    """Ring the variants on the front; return True if there is a dotted ring."""
    dotted = False
    for _, point in front.iterrows():
        if not point["on_front"] and not point["probability"] >= SOMETIMES:  # NaN of one seed
            continue
        dotted |= not point["on_front"]
        panel.scatter(
            point["at"],
            point["value"],
            s=75,
            facecolors="none",
            edgecolors="0.2",
            linewidths=0.7,
            linestyles="solid" if point["on_front"] else "dotted",
        )
    return dotted


def draw_variant(panel: Axes, row: pd.Series, cost: str, seeds: pd.Series, styles: Mapping[str, Style]) -> None:
    """Draw one variant at a cost: mean accuracy, its interval, quartiles of a timed cost, and a dot for each seed.

    Args:
        panel: axes to draw on.
        row: the variant's row of ``tradeoff_table``.
        cost: column of that row, the horizontal axis.
        seeds: test accuracy of each seed.
        styles: style of each variant.
    """
    style, x = styles[row["variant"]], row[cost]
    panel.plot(np.full(len(seeds), x), seeds, ".", color=style.colour, alpha=0.4, markersize=2.5)
    error = None if np.isnan(row["low"]) else [[row["accuracy"] - row["low"]], [row["high"] - row["accuracy"]]]
    mark = {"fmt": style.marker, "color": style.colour, "markersize": 4, "elinewidth": 0.8}
    lower, upper = row.get(f"{cost}_lower", np.nan), row.get(f"{cost}_upper", np.nan)
    across = None if np.isnan(lower) or np.isnan(upper) else [[max(0.0, x - lower)], [max(0.0, upper - x)]]
    panel.errorbar(x, row["accuracy"], error, across, label=row["variant"], zorder=3, **mark)


class _Short(Formatter):
    """Ticks as ``1.2M`` for 1,200,000, in the fewest digits, from three on, in which they differ."""

    def __init__(self, factor: float) -> None:
        self._factor = factor

    def __call__(self, value: float, _position: int | None = None) -> str:
        """Return the label of one tick among ``locs``."""
        locs = [float(loc) * self._factor for loc in self.locs]
        digits = next((d for d in range(3, 10) if len({_short(loc, d) for loc in locs}) == len(set(locs))), 10)
        return _short(value * self._factor, digits)


def _short(value: float, digits: int) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.{digits}g}{name}"
    return f"{value:.{digits}g}"
