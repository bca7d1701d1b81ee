"""Accuracy against cost: per variant over seeds, and paired with a baseline.

Reads the long table of a study: study, variant, seed, layer, measure, null, groups, value, unit.
"""

from __future__ import annotations

import pandas as pd

from analysis.stats import Estimate, mean_interval

COSTS = {
    "parameters": "parameters",
    "macs": "MACs per image",
    "latency": "time per image (ms)",
}


def over_seeds(table: pd.DataFrame, measure: str, variant: str, layer: str = "") -> Estimate | None:
    """Mean and interval of one measure of one variant over its seeds; None where it was not measured."""
    rows = _rows(table, measure, layer)
    values = rows.loc[rows["variant"] == variant, "value"].dropna()
    return mean_interval(values) if len(values) else None


def paired_difference(table: pd.DataFrame, measure: str, variant: str, baseline: str) -> Estimate | None:
    """Mean and interval of variant − baseline over the seeds that both have; None where there is no such seed."""
    rows = _rows(table, measure, "")
    by_seed = rows[rows["variant"].isin([variant, baseline])].pivot_table("value", "seed", "variant")
    if variant == baseline or not {variant, baseline} <= set(by_seed.columns):
        return None
    difference = (by_seed[variant] - by_seed[baseline]).dropna()
    return mean_interval(difference) if len(difference) else None


def tradeoff_table(table: pd.DataFrame) -> pd.DataFrame:
    """One row per variant, in the order of the table: accuracy with its interval, and every cost.

    Columns: variant, accuracy, low, high, n, difference (to the first variant, paired by seed), difference_low,
    difference_high, then one column per cost.
    """
    variants = list(dict.fromkeys(table["variant"]))
    rows = []
    for variant in variants:
        accuracy = over_seeds(table, "test_accuracy", variant)
        if accuracy is None:
            continue
        row: dict[str, object] = {
            "variant": variant,
            "accuracy": accuracy.mean,
            "low": accuracy.low,
            "high": accuracy.high,
            "n": accuracy.n,
        }
        difference = paired_difference(table, "test_accuracy", variant, variants[0])
        if difference is not None:
            row |= {
                "difference": difference.mean,
                "difference_low": difference.low,
                "difference_high": difference.high,
            }
        for cost in COSTS:
            estimate = over_seeds(table, cost, variant)
            row[cost] = float("nan") if estimate is None else estimate.mean
        rows.append(row)
    columns = ["variant", "accuracy", "low", "high", "n", "difference", "difference_low", "difference_high", *COSTS]
    return pd.DataFrame(rows, columns=pd.Index(columns))


def _rows(table: pd.DataFrame, measure: str, layer: str) -> pd.DataFrame:
    return table[(table["measure"] == measure) & (table["layer"].fillna("") == layer)]
