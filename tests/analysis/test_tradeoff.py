import math

import pandas as pd
import pytest

from analysis.tradeoff import over_seeds, paired_difference, tradeoff_table


def long_table(**accuracies):
    rows = [
        {"variant": variant, "seed": seed, "layer": "", "measure": "test_accuracy", "value": value}
        for variant, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    for variant, macs in zip(accuracies, (400, 200), strict=False):
        rows.append({"variant": variant, "seed": None, "layer": "", "measure": "macs", "value": macs})
    return pd.DataFrame(rows)


def test_means_intervals_and_paired_differences_by_hand():
    table = tradeoff_table(long_table(dense=[0.80, 0.90], grouped=[0.79, 0.88]))
    dense, grouped = table.iloc[0], table.iloc[1]
    assert dense["accuracy"] == pytest.approx(0.85)
    assert (dense["n"], dense["macs"]) == (2, 400)
    assert math.isnan(dense["difference"])
    assert grouped["difference"] == pytest.approx(-0.015)
    # Differences -0.01 and -0.02: standard error 0.005, t(0.975, 1) = 12.7062.
    assert grouped["difference_high"] == pytest.approx(-0.015 + 12.7062 * 0.005, rel=1e-4)
    assert math.isnan(grouped["latency"])


def test_only_seeds_that_both_have_are_paired():
    difference = paired_difference(
        long_table(dense=[0.8, 0.9, 0.7], grouped=[0.9]), "test_accuracy", "grouped", "dense"
    )
    assert difference is not None
    assert (difference.mean, difference.n) == (pytest.approx(0.1), 1)


def test_what_was_not_measured_is_none():
    table = long_table(dense=[0.8])
    assert over_seeds(table, "latency", "dense") is None
    assert paired_difference(table, "test_accuracy", "dense", "dense") is None
    assert paired_difference(table, "test_accuracy", "other", "dense") is None
