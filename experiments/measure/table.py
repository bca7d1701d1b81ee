"""The items that a measure yields, and the long table, notes and arrays that they are gathered in.

The long table has one row per value: study, variant, seed, layer, measure, null, groups, value, unit. ``null`` is empty
for the trained network and names the null otherwise (``analysis.nulls``). ``groups`` is the partition of the layer. A
note gives the reason for a missing value. An infinite one, such as a ratio to zero, is undefined: NaN.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from experiments.store.runs import write_atomic

COLUMNS = ["study", "variant", "seed", "layer", "measure", "null", "groups", "value", "unit"]
NOTE_COLUMNS = ["study", "variant", "seed", "layer", "measure", "note"]


@dataclass(frozen=True)
class Value:
    """One measured value.

    Attributes:
        measure: its name.
        value: the number.
        unit: of the value.
        layer: name of the convolution; empty for a value of the whole network.
        null: name of the null; empty for the trained network.
        groups: partition of the layer, where it is not the one that the layer was built with.
    """

    measure: str
    value: float
    unit: str = ""
    layer: str = ""
    null: str = ""
    groups: str = ""


@dataclass(frozen=True)
class Note:
    """The reason why a value of a measure is missing or limited."""

    measure: str
    note: str
    layer: str = ""


@dataclass(frozen=True, eq=False)
class Array:
    """An array that a figure draws, and its name in the file."""

    name: str
    values: NDArray


Item = Value | Note | Array


@dataclass(frozen=True, eq=False)
class Measured:
    """All items of one network, gathered.

    Attributes:
        table: the long table, with ``COLUMNS``.
        notes: a row for each note, with ``NOTE_COLUMNS``.
        arrays: by name.
    """

    table: pd.DataFrame
    notes: pd.DataFrame
    arrays: dict[str, NDArray]


def gather(
    items: Iterable[Item], study: str, variant: str, seed: int | None, groups: Mapping[str, str] | None = None
) -> Measured:
    """Gather the items of one network into tables.

    Args:
        items: in the order of the rows.
        study, variant, seed: of every row.
        groups: partition that each layer was built with, by the layer's name.
    """
    fixed = {"study": study, "variant": variant, "seed": seed}
    rows, notes, arrays = [], [], {}
    for item in items:
        if isinstance(item, Value):
            built = (groups or {}).get(item.layer, "")
            value = float(item.value) if math.isfinite(item.value) else math.nan
            rows.append({**fixed, **asdict(item), "groups": item.groups or built, "value": value})
        elif isinstance(item, Note):
            notes.append({**fixed, **asdict(item)})
        else:
            arrays[item.name] = item.values
    table = pd.DataFrame(rows, columns=pd.Index(COLUMNS))
    return Measured(table, pd.DataFrame(notes, columns=pd.Index(NOTE_COLUMNS)), arrays)


def save_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, whole or not at all."""
    write_atomic(path, lambda file: file.write(table.to_csv(index=False).encode()))


def save_arrays(path: Path, arrays: Mapping[str, NDArray]) -> None:
    """Write arrays as a compressed npz, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(path, lambda file: file.write(buffer.getvalue()))
