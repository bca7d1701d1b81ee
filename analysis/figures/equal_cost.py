"""Logarithmic against uniform groups at equal number of groups, at equal parameters and at equal MACs."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from analysis.figures import page
from analysis.figures.estimates import (
    ESTIMATE,
    INK,
    Mark,
    axis_ends,
    draw_marks,
    evenly,
    left_out_note,
    seeds_note,
)
from analysis.figures.saved import Saved
from analysis.tradeoff import EQUAL_COST, EQUAL_WITHIN, EQUALITIES, equal_pairs, paired_difference, partition_kinds

HEADINGS = {"groups": "equal number of groups", "parameters": "equal parameters", "macs": "equal MACs"}
ROW = 0.19  # inches
MOST = 32  # lines that fit on a page
KINDS = {"logarithmic", "uniform"}


def logarithmic_against_uniform(table: pd.DataFrame, families: dict[str, str]) -> pd.DataFrame:
    """Return the difference in test accuracy, logarithmic − uniform, of each pair of variants that is equal in a cost.

    Args:
        table: long table of a study.
        families: family of each variant; only variants of one family are compared.

    Returns:
        equal (what the two have in common: ``groups``, ``parameters``, ``macs``), pair, mean, low, high, n, seeds,
        undefined.
    """
    kinds, rows = partition_kinds(table), []
    for by in EQUALITIES:
        for _, pair in equal_pairs(table, by).iterrows():
            two = sorted((pair["variant"], pair["baseline"]), key=lambda variant: kinds.get(variant, ""))
            one_family = two[0] in families and families[two[0]] == families.get(two[1])
            if {kinds.get(variant) for variant in two} != KINDS or not one_family:
                continue
            estimate = paired_difference(table, "test_accuracy", *two)
            if estimate is not None:
                spread = (estimate.mean, estimate.low, estimate.high, estimate.n, estimate.seeds, 0)
                rows.append((by, " − ".join(two), *spread))
    return pd.DataFrame(rows, columns=pd.Index(["equal", "pair", *ESTIMATE]))


def draw(saved: Saved, folder: Path) -> list[Path]:
    """Draw one panel per equality and one line per pair: the mean difference, its 95% interval, a dot for each seed.

    Args:
        saved: the long table and the runs with their families.
        folder: folder for the figure.

    Returns:
        The files written; none if no two variants differ in the kind of their groups alone.
    """
    if saved.runs is None or "family" not in saved.runs:
        return []
    families = dict(saved.runs[["variant", "family"]].dropna().itertuples(index=False))
    whole = logarithmic_against_uniform(saved.measures, families)
    if whole.empty:
        return []
    pairs = whole.loc[evenly(list(whole.index), MOST)]
    parts = [(by, pairs[pairs["equal"] == by]) for by in EQUALITIES if by in set(pairs["equal"])]
    heights = [ROW * len(part) + 0.15 for _, part in parts]
    figure, panels = plt.subplots(
        len(parts),
        1,
        figsize=(page.WIDTH, 0.8 + sum(heights) + 0.2 * len(parts)),
        height_ratios=heights,
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    seeds = [seed for of_pair in pairs["seeds"] for seed in of_pair]
    within = axis_ends(pairs, -EQUAL_WITHIN, EQUAL_WITHIN, *seeds)
    for panel, (by, part) in zip(panels[:, 0], parts, strict=True):
        places = np.arange(len(part))
        panel.axvspan(-EQUAL_WITHIN, EQUAL_WITHIN, color="0.94", zorder=0)
        panel.axvline(0, color="0.4", linewidth=0.7, zorder=1)
        for place, of_pair in zip(places, part["seeds"], strict=True):
            panel.plot(of_pair, np.full(len(of_pair), place), ".", color="0.6", markersize=2.5, zorder=2)
        draw_marks(panel, places, part, Mark(INK, "o", False), within=within)
        names = page.short_names(list(part["pair"]), 44)
        panel.set_yticks(places, [names[pair] for pair in part["pair"]], fontsize=6.5)
        panel.set(xlim=within, ylim=(len(part) - 0.4, -0.6))
        panel.set_title(HEADINGS[by], fontsize=7)
        panel.tick_params(axis="x", labelsize=6.5)
    panels[-1, 0].set_xlabel("difference in test accuracy: logarithmic − uniform", fontsize=7)
    page.title(figure, "Logarithmic against uniform groups: equal number, parameters or MACs")
    page.caption(
        figure,
        f"A line compares two variants that differ in groups and widths alone, seed by seed. Parameters and MACs are "
        f"equal within {EQUAL_COST:.0%}. The number of groups is that of the layer with most. Grey band: differences "
        f"of at most {EQUAL_WITHIN:g}. Small dots: seeds. {seeds_note(pairs)}"
        f"{left_out_note(len(pairs), len(whole), 'lines')}",
    )
    return page.save(figure, folder, "equal-cost")
