"""Reading of saved tables. A damaged table is reported with the command that writes it again."""

from __future__ import annotations

import io
import json
import lzma
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.errors import UsageError
from experiments.measure.table import COLUMNS
from experiments.store.packed import DAMAGE
from experiments.study.invocation import typed

LONG_TABLE = "measures.csv"
GROUPS = r"|\d+|log:\d+|\d+(,\d+)+"  # column of the long table: a text of gconv.Partition, or none
COMPRESSED = ".xz"  # suffix of a table in the record that is large
SWEEPS = ("sweep", "importance")  # tables of a sweep
RECORD = "results"


class DamagedTableError(UsageError):
    """A file that this suite wrote was changed, cut off or removed since.

    Attributes:
        damage: the file and its fault, without the remedy.
    """

    def __init__(self, path: Path, reason: str) -> None:
        self.damage = f"{path}: damaged: {reason}"
        super().__init__(f"{self.damage}; to make it again: {_remake(path)}")


def long_table(folder: Path) -> Path:
    """Return the path of a folder's long table, which the record has compressed."""
    compressed = folder / f"{LONG_TABLE}{COMPRESSED}"
    return compressed if compressed.is_file() else folder / LONG_TABLE


def read_content(path: Path) -> bytes:
    """Return the content of a file, decompressed if it is.

    Raises:
        DamagedTableError: it is gone, or its compression is damaged.
    """
    try:
        content = path.read_bytes()
        return lzma.decompress(content) if path.suffix == COMPRESSED else content
    except FileNotFoundError:
        raise DamagedTableError(path, "it is gone") from None
    except lzma.LZMAError as error:
        raise DamagedTableError(path, " ".join(str(error).split())) from None


def read_table(path: Path) -> pd.DataFrame:
    """Return a long table as it was written: texts stay texts, also those such as ``null`` or ``4``."""
    texts = [column for column in COLUMNS if column not in ("seed", "value")]
    missing = {"seed": "", "value": ""}
    table = read_csv(path, COLUMNS, dtype=dict.fromkeys(texts, str), keep_default_na=False, na_values=missing)
    check_numbers(path, table, ("seed", "value"))
    if not (table["seed"].dropna() % 1 == 0).all():
        raise DamagedTableError(path, "a seed is not a whole number")
    if not (right := table["groups"].str.fullmatch(GROUPS)).all():
        raise DamagedTableError(path, f"groups {table['groups'][~right].iloc[0]}: not as 4, log:4 or 8,4,4")
    return table


def check_numbers(path: Path, table: pd.DataFrame, columns: Iterable[str]) -> None:
    """Raise if a cell of these columns is neither a finite number nor empty.

    Raises:
        DamagedTableError: names the column.
    """
    for column in columns if len(table) else ():
        if not pd.api.types.is_numeric_dtype(table[column]) or np.isinf(table[column]).any():
            raise DamagedTableError(path, f"{column}: some cells are no finite numbers")


def read_text(path: Path) -> str:
    """Return the content of a text file, decompressed if it is.

    Raises:
        DamagedTableError: it is gone, or no UTF-8.
    """
    try:
        return read_content(path).decode()
    except UnicodeDecodeError as error:
        raise DamagedTableError(path, str(error)) from None


def read_csv(path: Path, columns: Sequence[str], numbers: Iterable[str] = (), **how: Any) -> pd.DataFrame:
    """Return a saved table.

    Args:
        path: path of the file.
        columns: columns that it has at least.
        numbers: those of them whose cells are finite numbers, or empty.
        how: arguments of ``pandas.read_csv``.

    Raises:
        DamagedTableError: it is none, or not whole.
    """
    content = read_content(path)
    if content.strip() and not content.endswith(b"\n"):
        raise DamagedTableError(path, "its last line is cut off")
    try:
        table = pd.read_csv(io.BytesIO(content), encoding="utf-8-sig", float_precision="round_trip", **how)
    except pd.errors.EmptyDataError:
        raise DamagedTableError(path, "it is empty") from None
    except (ValueError, pd.errors.ParserError) as error:  # not UTF-8 is one too
        raise DamagedTableError(path, " ".join(str(error).split())) from None
    if lacking := [column for column in columns if column not in table]:
        raise DamagedTableError(path, f"it has no column {lacking[0]}, or other separators than commas")
    check_numbers(path, table, numbers)
    return table


def read_about(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Return the notes on tables in a JSON file, which has at least these keys.

    Raises:
        DamagedTableError: it is none, or not whole.
    """
    try:
        about = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DamagedTableError(path, "it is gone") from None
    except ValueError as error:  # not UTF-8 is one too
        raise DamagedTableError(path, f"no JSON: {error}") from None
    if not isinstance(about, dict):
        raise DamagedTableError(path, f"it is a {type(about).__name__}, not a mapping")
    if missing := [key for key in keys if key not in about]:
        raise DamagedTableError(path, f"it has not the keys {', '.join(missing)}")
    return about


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a NumPy file by name; half precision is widened to single.

    Raises:
        DamagedTableError: it is none, or not whole.
    """
    try:
        with np.load(path) as file:
            return {name: x.astype(np.float32) if x.dtype == np.float16 else x for name, x in file.items()}
    except FileNotFoundError:
        raise DamagedTableError(path, "it is gone") from None
    except (OSError, *DAMAGE) as error:
        raise DamagedTableError(path, " ".join(str(error).split())) from None


def _remake(path: Path) -> str:
    folder = path.resolve().parent
    for place in (folder, folder.parent):  # the tables of a record, and its packed runs
        if place.parent.name == RECORD:
            return typed("results", place.name)
    return typed("sweep" if path.stem in SWEEPS else "run", folder.parent.name)
