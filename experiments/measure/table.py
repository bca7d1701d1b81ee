"""The long table that everything measured lands in, and how tables and arrays are saved.

One row per value: study, variant, seed, layer, measure, null, groups, value, unit. ``null`` is empty for what was
measured and names the null otherwise; ``groups`` says how the layer is cut. What could not be measured is a note.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.store.runs import write_atomic

COLUMNS = ["study", "variant", "seed", "layer", "measure", "null", "groups", "value", "unit"]
NOTE_COLUMNS = ["study", "variant", "seed", "layer", "measure", "note"]


class Rows:
    """Rows of the long table about one run, and notes on what could not be measured."""

    def __init__(self, study: str, variant: str, seed: int | None) -> None:
        self._fixed = {"study": study, "variant": variant, "seed": seed}
        self._rows: list[dict[str, Any]] = []
        self._notes: list[dict[str, Any]] = []
        self.groups: dict[str, str] = {}  # how each layer is cut

    def add(
        self, measure: str, value: float, unit: str = "", layer: str = "", null: str = "", groups: str = ""
    ) -> None:
        """Append one value; ``groups`` where the layer is cut otherwise than it was built."""
        of_layer = {"layer": layer, "groups": groups or self.groups.get(layer, "")}
        self._rows.append(
            {**self._fixed, **of_layer, "measure": measure, "null": null, "value": float(value), "unit": unit}
        )

    def note(self, measure: str, note: str, layer: str = "") -> None:
        """Say what could not be measured, and why."""
        self._notes.append({**self._fixed, "layer": layer, "measure": measure, "note": note})

    def table(self) -> pd.DataFrame:
        """The rows so far."""
        return pd.DataFrame(self._rows, columns=pd.Index(COLUMNS))

    def notes(self) -> pd.DataFrame:
        """The notes so far."""
        return pd.DataFrame(self._notes, columns=pd.Index(NOTE_COLUMNS))


def save_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, whole or not at all."""
    write_atomic(path, lambda file: file.write(table.to_csv(index=False).encode()))


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as a compressed npz, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(path, lambda file: file.write(buffer.getvalue()))
