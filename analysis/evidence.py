"""Runs that are evidence: not those that diverged, that learned nothing, or that differ in precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from analysis.effects import Metric
from analysis.stats import proportion_interval

FEW_LEARNED = 0.5  # share of the first layer's filters; below it most are still the noise that they began as
FEWEST_CLASSES, FEWEST_IMAGES = 2, 100  # assumed of a record that does not say how many it has

# Measures of accuracy and cost. All others are measures of the filters.
OUTCOMES = {
    *("test_accuracy", "train_accuracy", "clean_train_accuracy", "test_loss", "train_loss"),
    *("parameters", "macs", "activations", "latency", "training_time", "peak_memory"),
}

Lost = Mapping[tuple[str, int], str]  # variant and seed of a run that is no evidence, and why


@dataclass(frozen=True)
class Record:
    """The measures of one study.

    Attributes:
        study: name of the study.
        place: folder from which they were read, ``runs`` or ``results``.
        table: the long table.
        hardware: the hardware on which they were measured.
        lost: runs that are no evidence for any claim.
        unlearned: runs that are no evidence for claims about filters.
        trial: keys of the training that the command line changed; empty if there are none.
        refused: why the whole record is no evidence; empty if it is evidence.
    """

    study: str
    place: str
    table: pd.DataFrame
    hardware: str = "hardware not recorded"
    lost: Lost = field(default_factory=dict)
    unlearned: Lost = field(default_factory=dict)
    trial: str = ""
    refused: str = ""

    def for_effect(self, metric: Metric) -> tuple[pd.DataFrame, Lost]:
        """Return the table and the lost runs for one effect."""
        if not metric.per_seed:  # counts and timings are those of the architecture
            return self.table, {}
        looks_at_filters = any(term.measure not in OUTCOMES for term in (*metric.of, *metric.minus))
        lost = {**self.unlearned, **self.lost} if looks_at_filters else self.lost
        return _without(self.table, lost), lost


def sort_evidence(table: pd.DataFrame, runs: pd.DataFrame, missing: pd.DataFrame) -> tuple[Lost, Lost, str]:
    """Separate the runs that are no evidence from those that are.

    Args:
        table: the long table.
        runs: one row per run: variant, seed, and, if recorded, precision, classes and test_images.
        missing: one row per run without a result: variant, seed, status, reason.

    Returns:
        The runs that are no evidence for any claim; the runs that are no evidence for claims about filters; and why the
        whole record is no evidence, an empty text if it is.
    """
    lost = {}
    for _, row in missing.iterrows():
        if row["status"] == "diverged":
            lost[row["variant"], int(row["seed"])] = "diverged"
    classes, images = (_recorded(runs, column) for column in ("classes", "test_images"))
    tested = table[(table["measure"] == "test_accuracy") & table["seed"].notna() & table["value"].between(0, 1)]
    for variant, seed, accuracy in zip(tested["variant"], tested["seed"], tested["value"], strict=True):
        of_all, of_images = classes.get(variant, FEWEST_CLASSES), images.get(variant, FEWEST_IMAGES)
        least, _ = proportion_interval(round(accuracy * of_images), of_images)
        if least <= 1 / of_all:
            lost[variant, int(seed)] = f"at chance (accuracy {accuracy:.3f}, {of_all} classes)"
    precisions = dict.fromkeys(runs["precision"].dropna()) if "precision" in runs else {}
    refused = f"runs of mixed precision ({', '.join(precisions)})" if len(precisions) > 1 else ""
    return lost, unlearned_runs(table), refused


def unlearned_runs(table: pd.DataFrame) -> Lost:
    """Return the runs that are no evidence for claims about filters: most of their first filters are noise still.

    Args:
        table: the long table.
    """
    learned = table[(table["measure"] == "learned_filters") & (table["null"].fillna("") == "")]
    few = learned[learned["value"] < FEW_LEARNED]
    return {
        (row["variant"], int(row["seed"])): f"learned {row['value']:.0%} of the first filters"
        for _, row in few.iterrows()
    }


def _recorded(runs: pd.DataFrame, column: str) -> dict[str, int]:
    """Return the first number that a column has for each variant."""
    if column not in runs:
        return {}
    first = runs.dropna(subset=column).drop_duplicates("variant")
    return {variant: int(float(number)) for variant, number in zip(first["variant"], first[column], strict=True)}


def _without(table: pd.DataFrame, lost: Lost) -> pd.DataFrame:
    if not lost:
        return table
    index = pd.MultiIndex.from_arrays([table["variant"], table["seed"]])
    return table[~index.isin(list(lost))]
