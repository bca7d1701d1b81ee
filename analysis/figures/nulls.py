"""Correlation within groups less between groups, and covariance on the blocks of the groups, against every null."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pandas as pd

from analysis.figures import forest
from analysis.figures.estimates import evenly, left_out_note, seed_estimates, seeds_note
from analysis.figures.forest import Quantity
from analysis.figures.saved import Saved
from analysis.nulls import TRAINED, UNTRAINED, without_cut

PLACES = 6  # layers side by side, at most
GAP = Quantity("|r| within − between", 0)
RISE = Quantity("trained − untrained", 0)
SHARE = Quantity("energy on blocks, beyond chance", 0)


def gaps(table: pd.DataFrame) -> pd.DataFrame:
    """Return the mean |r| within groups − between groups, per seed.

    Args:
        table: long table with ``within_<side>`` and ``between_<side>``; side: computed, or read.

    Returns:
        variant, seed, layer, side, null, groups, value; where one of the two is missing there is no row.
    """
    keys = ["variant", "layer", "side", "null", "groups", "seed"]
    parts = []
    for kind in ("within", "between"):
        rows = table[table["measure"].isin([f"{kind}_computed", f"{kind}_read"])]
        side = rows["measure"].str.removeprefix(f"{kind}_")
        parts.append(rows.assign(side=side).groupby(keys, sort=False, dropna=False)["value"].mean())
    within, between = parts
    both = within.index.intersection(between.index, sort=False)
    return (within.loc[both] - between.loc[both]).rename("value").reset_index()


def rises(table: pd.DataFrame) -> pd.DataFrame:
    """Return the gap of the trained network − gap of the same one untrained, of the seeds that have both."""
    keys = ["variant", "layer", "side", "groups", "seed"]
    trained, untrained = (table[table["null"] == null].set_index(keys)["value"] for null in (TRAINED, UNTRAINED))
    both = trained.index.intersection(untrained.index, sort=False)
    return (trained.loc[both] - untrained.loc[both]).rename("value").reset_index()


def block_shares(table: pd.DataFrame, columns: Collection[str]) -> pd.DataFrame:
    """Return ``on_block_share`` of each pair of layers, in the column of the first one.

    Args:
        table: long table.
        columns: headings ``layer, side``; the filters of the first layer are sorted by the group that reads them, which
            is the one that computes them where the layer has no column ``read``.

    Returns:
        The rows of these columns, with the heading in ``column``.
    """
    rows = table[table["measure"] == "on_block_share"]
    first = rows["layer"].str.split("-", n=1).str[0]
    read = first + ", read"
    rows = rows.assign(column=read.where(read.isin(columns), first + ", computed"))
    return rows[rows["column"].isin(columns)]


def columns_of(table: pd.DataFrame) -> pd.Series:
    """Return the heading of each gap: ``layer, side``.

    A dense layer is cut by no group, so its partitions are drawn with the groups that the layer has in other variants:
    those that compute its filters, else those that read them.
    """
    grouped = set(table.loc[table["null"] == TRAINED, ["layer", "side"]].itertuples(index=False, name=None))

    def column(layer: str, side: str) -> str:
        side = next((s for s in (side, "read") if (layer, s) in grouped), "arbitrary groups")
        return f"{layer}, {side}"

    return pd.Series(list(map(column, table["layer"], table["side"])), index=table.index, dtype=str)


def draw(saved: Saved, folder: Path) -> list[Path]:
    """Draw the gap of each variant and layer with its nulls; below it the gain by training, and the energy on blocks.

    Args:
        saved: the long table.
        folder: folder for the figure.

    Returns:
        The files written; none if no correlation was measured within and between groups.
    """
    table = saved.measures
    gap = gaps(table)
    if gap.empty:
        return []
    gap = gap.assign(column=columns_of(gap))
    added = rises(gap)
    added = added.assign(column=added["layer"] + ", " + added["side"], null=TRAINED)
    columns = _in_order(gap)
    drawn = evenly(columns, PLACES)
    keys = ["variant", "column", "null", "groups"]
    gap = gap.assign(null=gap["null"].map(without_cut))
    parts = []
    for quantity, values in ((GAP, gap), (RISE, added), (SHARE, block_shares(table, columns))):
        parts.append(seed_estimates(values[values["column"].isin(drawn)], keys).assign(quantity=quantity.name))
    cells = pd.concat([part for part in parts if len(part)])
    order = [variant for variant in dict.fromkeys(table["variant"]) if variant in set(cells["variant"])]
    cells = cells.sort_values("variant", key=lambda names: names.map(order.index), kind="stable")
    caption = (
        "Gap: correlation of filters of one group minus that of filters of two groups; a trained gap is a "
        "finding if it exceeds those of the nulls. Computed, read: the filters are sorted by these groups. "
        "A spectral partition has the largest gap possible, an arbitrary one has none; each "
        "has a mark for each number of parts. Energy on blocks: share of the whitened covariance "
        "with the next layer within the groups; 0: as without groups, 1: all of it. "
        f"{seeds_note(cells)}{left_out_note(len(drawn), len(columns), 'layers')}"
    )
    quantities = [quantity for quantity in (GAP, RISE, SHARE) if quantity.name in set(cells["quantity"])]
    return forest.draw(
        cells,
        quantities,
        drawn,
        "Correlation and covariance within groups, against their nulls",
        caption,
        folder,
        "nulls",
    )


def _in_order(table: pd.DataFrame) -> list[str]:
    """Return the columns in the order of the layers, whichever variant has most of them."""
    layers = {layer: place for place, layer in enumerate(_merged(table))}
    first = table.drop_duplicates("column")
    return [column for _, column in sorted(zip(first["layer"].map(layers), first["column"], strict=True))]


def _merged(table: pd.DataFrame) -> list[str]:
    """Return the layers in the order of computation: those of the variant with most of them, the others' after them."""
    by_variant = [list(dict.fromkeys(rows["layer"])) for _, rows in table.groupby("variant", sort=False)]
    return list(dict.fromkeys(layer for layers in sorted(by_variant, key=len, reverse=True) for layer in layers))
