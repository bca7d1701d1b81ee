"""Time that grouping saves in a layer, against the multiply-accumulates that it saves."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from analysis.figures import page

WAYS = {"native": "o", "loop": "s", "packed": "^", "ours": "D"}
OUTER = {"native": 7.0}  # ring around marks that cover each other: equal partitions are computed natively
CAPTION = (
    "A mark for each partition: a whole step, forward and backward, bars: the middle half of the timed calls. Native: "
    "the framework's grouped convolution, for equal groups; loop: a convolution for each group; packed: groups of "
    "one size together; ours: what this suite runs."
)


def draw(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw whole steps (forward and backward), relative to the dense layer; one panel per layer, a row per dtype.

    Args:
        table: long, as ``benchmarks.kernels`` writes it: layer, partition, dtype, op, kernel, median, lower, upper in
            seconds, and ``ideal``, the share of the dense multiply-accumulates.
        folder: folder for ``speed.pdf`` and ``speed.png``.

    Returns:
        Their paths.

    Raises:
        ValueError: the table has no step of a dense layer.
    """
    steps = table[table["op"] == "step"]
    if "dense" not in set(steps["kernel"]):
        raise ValueError("the table has no row with op=step and kernel=dense: there is nothing to compare with")
    page.apply_style()
    layers, dtypes = list(dict.fromkeys(steps["layer"])), list(dict.fromkeys(steps["dtype"]))
    figure = plt.figure(figsize=(page.WIDTH, 0.45 + 1.5 * len(dtypes)), layout="constrained")
    panels = figure.subplots(len(dtypes), len(layers), squeeze=False, sharex=True, sharey=True)
    colours = dict(zip(WAYS, sns.color_palette("colorblind"), strict=False))
    for row, dtype in zip(panels, dtypes, strict=True):
        for panel, layer in zip(row, layers, strict=True):
            here = steps[(steps["layer"] == layer) & (steps["dtype"] == dtype)]
            _panel(panel, here, colours)
            panel.set_title(
                page.wrapped(f"{in_words(layer)}, {dtype}", page.characters_that_fit(page.WIDTH / len(layers) - 0.1, 7))
            )
    for panel in panels[-1]:
        panel.set_xlabel("MACs / dense")
    for row in panels:
        row[0].set_ylabel("time / dense")
    handles = {label: h for p in panels.flat for h, label in zip(*p.get_legend_handles_labels(), strict=True)}
    page.legend(figure, list(handles.values()), list(handles))
    page.caption(figure, CAPTION)
    return page.save(figure, folder, "speed")


def in_words(layer: str) -> str:
    """Return ``64@32/1x1`` as ``64 channels, 32×32, kernel 1×1``."""
    shape, *more = layer.split("/")
    channels, size = shape.split("@")
    parts = [f"{channels} channels", f"{size}×{size}"]
    parts += [f"kernel {more[0].replace('x', '×')}"] if more else []
    return ", ".join(parts + ([f"stride {more[1]}"] if len(more) > 1 else []))


def _panel(panel: Axes, steps: pd.DataFrame, colours: dict) -> None:
    """Draw one layer in one dtype: a point per partition and way, the line where time is saved as arithmetic is."""
    panel.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=0.8, label="time as MACs")
    panel.axhline(1, color="0.8", linewidth=0.8, zorder=0, label="dense")
    dense = steps[steps["kernel"] == "dense"].groupby("partition")["median"].first()
    for way, marker in WAYS.items():
        points = steps[steps["kernel"] == way].sort_values("ideal")
        if points.empty:
            continue
        base = points["partition"].map(dense)
        times = points["median"] / base
        spread = [times - points["lower"] / base, points["upper"] / base - times]
        ring = way in OUTER
        style = {"marker": marker, "markersize": OUTER.get(way, 3.5), "linestyle": "none", "elinewidth": 0.8}
        style |= {"markerfacecolor": "none" if ring else colours[way], "zorder": 5 if ring else 3}
        panel.errorbar(points["ideal"], times, yerr=spread, color=colours[way], label=way, **style)
    panel.set_xlim(0, 1)
    panel.set_ylim(bottom=0)
