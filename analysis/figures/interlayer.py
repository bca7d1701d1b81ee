"""Covariance between a layer and the grouped one that reads it, both whitened, in block order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from analysis.figures import matrices
from analysis.figures.estimates import evenly, left_out_note, seed_estimates
from analysis.figures.matrices import Matrix
from analysis.figures.saved import Saved
from analysis.nulls import BLOCK_AREAS, TRAINED, UNTRAINED

PAIRS = 4  # of layers, side by side, at most
BRIGHTEST = 0.995  # quantile of all entries at which the scale ends: a few are far larger
TITLE = "Whitened covariance between layers, by the groups of the second"


def energies(table: pd.DataFrame) -> pd.DataFrame:
    """Return the share of the energy on the blocks, mean over seeds.

    Returns:
        variant, layer (``first-second``), null, mean, low, high, n, undefined.
    """
    return seed_estimates(table[table["measure"] == "on_block_energy"], ["variant", "layer", "null"])


def draw(saved: Saved, folder: Path) -> list[Path]:
    """Draw a row for each variant, a column for each pair of layers; over it the energy on the blocks and its nulls.

    Args:
        saved: the long table, and per variant the arrays ``whitened <a>-<b>`` (C, D) and the group of each row and
            column, ``whitened <a>-<b> rows`` (C,) and ``… columns`` (D,).
        folder: folder for the figure.

    Returns:
        The files written; none if there is no matrix.
    """
    arrays = saved.arrays
    covariances = {
        (variant, key.removeprefix("whitened ")): values
        for variant, a in arrays.items()
        for key, values in a.items()
        if key.startswith("whitened ") and values.ndim == 2
    }
    if not covariances:
        return []
    pairs = list(dict.fromkeys(pair for _, pair in covariances))
    drawn = evenly(pairs, PAIRS)
    energy = energies(saved.measures)
    panels = {
        (variant, pair): Matrix(
            np.abs(values),
            arrays[variant].get(f"whitened {pair} rows"),
            arrays[variant].get(f"whitened {pair} columns"),
            _title(energy, variant, pair),
        )
        for (variant, pair), values in covariances.items()
        if pair in drawn
    }
    entries = np.concatenate([matrix.values[np.isfinite(matrix.values)] for matrix in panels.values()])
    largest = float(np.quantile(entries, BRIGHTEST)) if entries.size else 1.0
    caption = (
        "Rows: filters of the first layer by the group that reads them; columns: filters of the second by the group "
        "that computes them; matrices of the first seed. Over each: share of the energy (squares) on the blocks; by "
        f"chance: their share of the area; untr.: of the network untrained. {_seeds_note(energy)}"
        f"{left_out_note(len(drawn), len(pairs), 'pairs of layers')}"
    )
    variants = [variant for variant in arrays if any(key[0] == variant for key in panels)]
    return matrices.draw(
        variants, drawn, panels, (largest or 1.0, "|covariance|"), (TITLE, caption), folder, "interlayer"
    )


def _title(energy: pd.DataFrame, variant: str, pair: str) -> tuple[str, ...]:
    """``on blocks 0.62``, ``chance 0.25``, ``untr. 0.40``: those that were measured."""
    rows = energy[(energy["variant"] == variant) & (energy["layer"] == pair)].set_index("null")["mean"]
    names = {TRAINED: "on blocks", BLOCK_AREAS: "chance", UNTRAINED: "untr."}
    return tuple(f"{name} {rows[null]:.2f}" for null, name in names.items() if null in rows)


def _seeds_note(energy: pd.DataFrame) -> str:
    seeds = sorted(set(energy["n"]))
    if not seeds or seeds[-1] < 2:
        return "One seed." if seeds else ""
    return f"Means over {seeds[0]}–{seeds[-1]} seeds." if seeds[0] < seeds[-1] else f"Means over {seeds[0]} seeds."
