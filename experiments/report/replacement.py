"""Protection of the record in ``results/``: a trial, or fewer seeds, replace it only with ``--replace``.

A study with more seeds than the record is no trial.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.errors import UsageError
from experiments.report.tables import long_table, read_about, read_csv


def check_replaces(tables: Path, record: Path) -> None:
    """Raise if a study's tables must not replace those of the record.

    Without tables there is nothing to compare; writing the record says so.

    Raises:
        UsageError: the study ran with overridden keys and the record did not, or the record has more seeds of a
            variant.
    """
    if not ((record / "runs.csv").is_file() and long_table(tables).is_file()):
        return
    ours, theirs = (_overrides(folder / "study.json") for folder in (tables, record))
    asked = "results --replace takes it nevertheless"
    if ours and ours != theirs:
        flags = " ".join(f"--{key}={value}" for key, value in ours.items())
        raise UsageError(f"{tables.parent}: the study ran with {flags}, and {record} did not; {asked}")
    here, there = (_seeds(folder / "runs.csv") for folder in (tables, record))
    for variant, seeds in there.items():
        if here.get(variant, 0) < seeds:
            raise UsageError(f"{record}: has {seeds} seeds of {variant}, and {tables} {here.get(variant, 0)}; {asked}")


def _overrides(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    overrides = read_about(path, []).get("overrides") or {}
    overrides = overrides if isinstance(overrides, dict) else dict.fromkeys(overrides, "")
    return {key: value for key, value in overrides.items() if key != "seeds"}  # they are counted


def _seeds(path: Path) -> dict[str, int]:
    """Return the number of seeds of each variant."""
    if not path.is_file():
        return {}
    runs = read_csv(path, [], dtype=str)
    if not {"variant", "seed"} <= set(runs.columns):
        return {}
    return {str(variant): int(count) for variant, count in runs.groupby("variant")["seed"].nunique().items()}
