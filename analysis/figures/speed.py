"""Time against arithmetic: what grouping saves of a layer's time, beside what it saves of its multiply-accumulates."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from analysis.figures.page import WIDTH, apply_style, save

WAYS = {"native": "o", "loop": "s", "packed": "^", "ours": "D"}


def draw(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw whole steps (forward and backward), relative to the dense layer; one panel per layer, a row per dtype.

    Args:
        table: long, as ``benchmarks.kernels`` writes it: layer, partition, dtype, op, kernel, median, lower, upper in
            seconds, and ``ideal``, the share of the dense multiply-accumulates.
        folder: where ``speed.pdf`` and ``speed.png`` go.

    Returns:
        Their paths.

    Raises:
        ValueError: the table has no step of a dense layer.
    """
    steps = table[table["op"] == "step"]
    if "dense" not in set(steps["kernel"]):
        raise ValueError("the table has no row with op=step and kernel=dense: there is nothing to compare with")
    apply_style()
    layers, dtypes = list(dict.fromkeys(steps["layer"])), list(dict.fromkeys(steps["dtype"]))
    figure = plt.figure(figsize=(WIDTH, 0.35 + 1.5 * len(dtypes)), layout="constrained")
    panels = figure.subplots(len(dtypes), len(layers), squeeze=False, sharex=True, sharey=True)
    colours = dict(zip(WAYS, sns.color_palette("colorblind"), strict=False))
    for row, dtype in zip(panels, dtypes, strict=True):
        for panel, layer in zip(row, layers, strict=True):
            here = steps[(steps["layer"] == layer) & (steps["dtype"] == dtype)]
            _panel(panel, here, colours)
            panel.set_title(f"{layer}, {dtype}")
    for panel in panels[-1]:
        panel.set_xlabel("MACs / dense")
    for row in panels:
        row[0].set_ylabel("time / dense")
    handles = {label: h for p in panels.flat for h, label in zip(*p.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    return save(figure, folder, "speed")


def _panel(panel: Axes, steps: pd.DataFrame, colours: dict) -> None:
    """One layer in one dtype: a point per partition and way, the line where time is saved as arithmetic is."""
    panel.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=0.8, label="ideal 1/G")
    panel.axhline(1, color="0.8", linewidth=0.8, zorder=0, label="dense")
    dense = steps[steps["kernel"] == "dense"].groupby("partition")["median"].first()
    for way, marker in WAYS.items():
        points = steps[steps["kernel"] == way].sort_values("ideal")
        if points.empty:
            continue
        base = points["partition"].map(dense)
        times = points["median"] / base
        spread = [times - points["lower"] / base, points["upper"] / base - times]
        style = {"marker": marker, "markersize": 3.5, "linestyle": "none", "elinewidth": 0.8}
        panel.errorbar(points["ideal"], times, yerr=spread, color=colours[way], label=way, **style)
    panel.set_xlim(0, 1)
    panel.set_ylim(bottom=0)
