"""A network spread over devices by its groups, compared with data parallelism: memory, bytes, time, balance."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from analysis.figures import page

GROUPS, DATA = "devices", "ddp"  # the variants of the comparison are devices-1, devices-2, ddp-2, …
NAMES = {GROUPS: "groups on devices", DATA: "data parallel (DDP)"}
MEGA = 1e6


def draw(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw four panels against the number of devices; returns the paths.

    Args:
        table: the long table of the study; a variant is a family and its number of devices, such as ``log-4``. Families
            other than ``devices`` and ``ddp`` are compared in balance alone.
        folder: folder for ``group-parallel.pdf`` and ``.png``.

    Raises:
        ValueError: the table holds no variant of a known number of devices.
    """
    page.apply_style()
    wide = _wide(table)
    if wide.empty:
        raise ValueError("the table has no measure devices: nothing to draw against")
    styles = page.variant_styles(list(dict.fromkeys(wide["family"])))
    figure, grid = plt.subplots(2, 2, figsize=(page.WIDTH, 4.3), layout="constrained")
    memory, sent, time, balance = grid.ravel()
    main = [family for family in (GROUPS, DATA) if family in set(wide["family"])]
    for family in main:  # on one device both are the same
        rows = wide[(wide["family"] == family) | ((wide["family"] == GROUPS) & (wide["devices"] == 1))]
        _line(memory, rows, "memory_per_device", styles[family], MEGA)
        _line(sent, rows[rows["sent"] > 0], "sent", styles[family], MEGA)
        _line(time, rows, "step_time", styles[family], 1.0)
    _draw_ideal(memory, wide[wide["family"] == GROUPS])
    others = [family for family in styles if family not in main]
    for family in others:
        _line(balance, wide[wide["family"] == family], "imbalance", styles[family], 1.0)
        _line(balance, wide[wide["family"] == family], "memory_balance", styles[family], 1.0, hollow=True)
    titles = ("Memory of the fullest device (MB)", "Sent in a step, all devices (MB)", "Time of a step (s)")
    for panel, title in zip(grid.ravel(), (*titles, "Largest share / equal share"), strict=True):
        panel.set_title(title)
        panel.set_xscale("log", base=2)
        panel.set_xticks(sorted(set(wide["devices"])))
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlim(0.85, 1.18 * wide["devices"].max())
    for panel in (memory, sent):
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_minor_locator(NullLocator())
    time.set_ylim(bottom=0)
    balance.set_visible(bool(others))
    for panel in grid[1]:
        panel.set_xlabel("devices")
    handles = [
        Line2D([], [], color=style.colour, marker=style.marker, linestyle=style.line, markersize=4)  # type: ignore[arg-type]
        for style in styles.values()
    ]
    page.legend(figure, handles, [NAMES.get(family, f"{family} groups") for family in styles])
    page.caption(figure, _reading(wide, bool(others)))
    return page.save(figure, folder, "group-parallel")


def _wide(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per variant, one column per measure of the whole network."""
    whole = table[(table["layer"].fillna("") == "") & (table["null"].fillna("") == "")]
    wide = whole.pivot_table(index="variant", columns="measure", values="value", sort=False).reset_index()
    if "devices" not in wide:
        return wide.iloc[:0]
    return wide.assign(family=[str(name).rpartition("-")[0] or str(name) for name in wide["variant"]])


def _line(panel: Axes, rows: pd.DataFrame, measure: str, style: page.Style, unit: float, hollow: bool = False) -> None:
    """Draw one family against the number of devices, with quartiles where there are some."""
    if measure not in rows or rows.empty:
        return
    rows = rows.sort_values("devices")
    values, error = rows[measure] / unit, None
    if f"{measure}_lower" in rows:
        error = np.abs(np.array([values - rows[f"{measure}_lower"] / unit, rows[f"{measure}_upper"] / unit - values]))
    panel.errorbar(
        rows["devices"],
        values,
        error,
        color=style.colour,
        marker=style.marker,
        linestyle=":" if hollow else style.line,  # type: ignore[arg-type]
        markerfacecolor="white" if hollow else style.colour,
        markersize=4,
        linewidth=1.0,
        elinewidth=0.8,
    )


def _draw_ideal(panel: Axes, rows: pd.DataFrame) -> None:
    """Draw the memory of one device, divided by the number of devices."""
    single = rows.loc[rows["devices"] == 1, "memory_per_device"]
    if len(single):
        devices = np.array(sorted(rows["devices"]))
        panel.plot(devices, single.item() / MEGA / devices, color="0.6", linestyle="--", linewidth=0.8, zorder=0)


def _reading(wide: pd.DataFrame, balance: bool) -> str:
    text = "One step of SGD with momentum on the same images. Memory: the peak of parameters, gradients, momentum and "
    text += "activations; dashed: that of one device, divided by their number. By groups: every device has its towers "
    text += "and all images. By data: every device has the network and its own images. Time: median and quartiles, "
    text += "variants in turn on one machine."
    if balance:
        text += " Last panel, another network: filled, multiply-accumulates on the critical path, over equal shares; "
        text += "hollow, memory of the fullest device over the mean."
    if "sent_into_grouped" in wide and wide["sent_into_grouped"].notna().any():
        share = wide["sent_into_grouped"].max()
        text += (
            f" Of the bytes sent by groups {f'up to {share:.0%} enter' if share else 'none enters'} a grouped layer."
        )
    return text
