"""Runs that are evidence: not those that diverged, that learned nothing, or that differ in precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from analysis.effects import Metric
from analysis.stats import binomial_test

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
    lost, unlearned = {}, {}
    for _, row in missing.iterrows():
        if row["status"] == "diverged":
            lost[row["variant"], int(row["seed"])] = "diverged"
    for _, row in table[(table["measure"] == "test_accuracy") & table["seed"].notna()].iterrows():
        variant, accuracy = row["variant"], float(row["value"])
        classes = _recorded(runs, variant, "classes", FEWEST_CLASSES)
        images = _recorded(runs, variant, "test_images", FEWEST_IMAGES)
        bound = binomial_test(round(accuracy * images), images).low if 0 <= accuracy <= 1 else None
        if bound is not None and bound <= 1 / classes:
            lost[variant, int(row["seed"])] = f"at chance (accuracy {accuracy:.3f}, {classes} classes)"
    learned = table[(table["measure"] == "learned_filters") & (table["null"].fillna("") == "")]
    for _, row in learned[learned["value"] < FEW_LEARNED].iterrows():
        unlearned[row["variant"], int(row["seed"])] = f"learned {row['value']:.0%} of its first filters"
    precisions = dict.fromkeys(runs["precision"].dropna()) if "precision" in runs else {}
    refused = f"runs of mixed precision ({', '.join(precisions)})" if len(precisions) > 1 else ""
    return lost, unlearned, refused


def _recorded(runs: pd.DataFrame, variant: str, column: str, otherwise: int) -> int:
    if column not in runs:
        return otherwise
    values = runs.loc[runs["variant"] == variant, column].dropna()
    return int(float(values.iloc[0])) if len(values) else otherwise


def _without(table: pd.DataFrame, lost: Lost) -> pd.DataFrame:
    if not lost:
        return table
    index = pd.MultiIndex.from_arrays([table["variant"], table["seed"]])
    return table[~index.isin(list(lost))]
