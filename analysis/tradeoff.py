"""Accuracy against cost: per variant over seeds, paired with a baseline, at equal cost, and on the Pareto front.

The input is the long table of a study: study, variant, seed, layer, measure, null, groups, value, unit. Comparisons at
equal number of groups, at equal parameters and at equal MACs are different, and each result names its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from analysis.intervals import UNBOUNDED, SeedEstimate, measure_bounds, seed_estimate
from analysis.stats import equivalence_test, sign_flip_test

COSTS = {  # drawn in figures
    "parameters": "parameters",
    "macs": "MACs per image",
    "latency": "time per image (ms)",
}
MORE_COSTS = {
    "activations": "activations per image",
    "peak_memory": "memory of a training step (bytes)",
    "energy": "energy per image (J)",  # where the hardware has a meter
}
FRONT_COLUMNS = ["variant", "at", "value", "on_front", "probability", "n", "note", "cost"]
EQUALITIES = ("groups", "parameters", "macs")  # of ``equal_pairs``
EQUAL_WITHIN = 0.01  # accuracy: the margin of an equality, one point
EQUAL_COST = 0.03  # relative difference of two costs that are equal; widths are whole channels
RESAMPLINGS = 4000
DISTURBED = 0.25  # greatest range of the middle half of the timed calls, relative to their median
NORMAL_QUARTILE = 0.6745  # standard deviations
OF_A_DIFFERENCE = (-1.0, 1.0)  # of accuracies


def over_seeds(table: pd.DataFrame, measure: str, variant: str, layer: str = "") -> SeedEstimate | None:
    """Return the mean and interval of one measure of one variant over its seeds; None where it was not measured."""
    rows = _rows(table, measure, layer)
    values = rows[rows["variant"] == variant].dropna(subset="value")
    unit = str(values["unit"].iloc[0]) if "unit" in values and len(values) else ""
    return seed_estimate(values["value"].to_numpy(), measure_bounds(measure, unit)) if len(values) else None


def paired_difference(table: pd.DataFrame, measure: str, variant: str, baseline: str) -> SeedEstimate | None:
    """Return mean and interval of variant − baseline over the seeds that both have; None without such a seed."""
    difference = _differences(table, measure, variant, baseline)
    bounds = OF_A_DIFFERENCE if measure.endswith("accuracy") else UNBOUNDED
    return seed_estimate(difference.to_numpy(), bounds) if len(difference) else None


def tradeoff_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per variant, in the order of the table: accuracy with its interval, and every cost.

    Columns: variant, accuracy, low, high, least, most (of the seeds), n, difference (to the first variant, paired by
    seed), difference_low, difference_high, difference_least, difference_most, then one column per cost, NaN where it
    was not measured, and latency_lower, latency_upper: the quartiles of the timed calls.
    """
    variants = list(dict.fromkeys(table["variant"]))
    table = _of_networks(table)
    costs = [*COSTS, *MORE_COSTS, "latency_lower", "latency_upper"]
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
            "least": min(accuracy.seeds),
            "most": max(accuracy.seeds),
            "n": accuracy.n,
        }
        difference = paired_difference(table, "test_accuracy", variant, variants[0])
        if difference is not None:
            row |= {
                "difference": difference.mean,
                "difference_low": difference.low,
                "difference_high": difference.high,
                "difference_least": min(difference.seeds),
                "difference_most": max(difference.seeds),
            }
        for cost in costs:
            estimate = over_seeds(table, cost, variant)
            row[cost] = float("nan") if estimate is None else estimate.mean
        rows.append(row)
    spread = ["low", "high", "least", "most"]
    of_difference = ["difference", *(f"difference_{end}" for end in spread)]
    columns = ["variant", "accuracy", *spread, "n", *of_difference, *costs]
    return pd.DataFrame(rows, columns=pd.Index(columns))


def disturbed(table: pd.DataFrame) -> list[str]:
    """Return the variants whose timed calls differ too much to be compared: something else ran on the machine."""
    middle, lower, upper = (_mean_by_variant(table, f"latency{end}") for end in ("", "_lower", "_upper"))
    both = [variant for variant in middle if variant in lower and variant in upper]
    return [variant for variant in both if upper[variant] - lower[variant] > DISTURBED * middle[variant]]


def on_front(costs: ArrayLike, accuracies: ArrayLike) -> NDArray[np.bool_]:
    """Return True for points on the Pareto front: no other point is as cheap and as accurate, and better in one.

    Points that are equal in both are on the front together.

    Args:
        costs: (V,) or (..., V), lower is better.
        accuracies: (V,) or (..., V), higher is better.

    Returns:
        As ``accuracies`` or ``costs``, whichever has more axes.
    """
    cost, accuracy = np.asarray(costs, dtype=np.float64), np.asarray(accuracies, dtype=np.float64)
    # [..., i, j]: j dominates i.
    cheaper, better = cost[..., None, :] < cost[..., :, None], accuracy[..., None, :] > accuracy[..., :, None]
    no_dearer, no_worse = cost[..., None, :] <= cost[..., :, None], accuracy[..., None, :] >= accuracy[..., :, None]
    return np.asarray(~(no_dearer & no_worse & (cheaper | better)).any(axis=-1))


def front_probability(table: pd.DataFrame, cost: str, measure: str = "test_accuracy", seed: int = 0) -> pd.DataFrame:
    """Return the share of resampled seeds in which each variant is on the Pareto front of accuracy against a cost.

    The seeds that all variants have are drawn with replacement. All variants get the same draw, because runs of one
    seed share the order of their images. With n seeds the resamples have only (n − 1)/n of the variance: read 0.9 from
    three seeds as "probably". Times are resampled too: log-normal, with the quartiles of the timed calls.

    Args:
        table: long table of a study.
        cost: name of the measure that is the cost; the mean over a variant's values.
        measure: name of the measure to gain; higher is better.
        seed: seed of the resampling.

    Returns:
        variant, cost, value (mean over the seeds drawn from), on_front (of these means), probability (NaN for one
        seed), n (number of seeds drawn from), note; cheapest first. Empty if no variant has both measures.
    """
    runs = _rows(table, measure, "").pivot_table("value", "seed", "variant")
    price = _mean_by_variant(table, cost)
    runs = runs[[variant for variant in sorted(price, key=lambda name: price[name]) if variant in runs.columns]]
    shared, costs = runs.dropna(), np.array([price[variant] for variant in runs.columns])
    columns = ["variant", "cost", "value", "on_front", "probability", "n", "note"]
    if shared.empty:
        return pd.DataFrame(columns=pd.Index(columns))
    means, n = shared.mean(), len(shared)
    front = on_front(costs, means)
    notes = [f"seeds left out, which not all variants have: {len(runs) - n}"] if len(runs) > n else []
    probability = np.full(len(costs), np.nan)
    if n > 1:
        drawn = np.random.default_rng(seed).integers(0, n, (RESAMPLINGS, n))
        prices = _drawn_costs(table, cost, list(runs.columns), costs, seed)
        probability = on_front(prices, shared.to_numpy()[drawn].mean(axis=1)).mean(axis=0)
    else:
        notes.append("one seed: no probability")
    values = [runs.columns, costs, means.to_numpy(), front, probability, n, "; ".join(notes)]
    return pd.DataFrame(dict(zip(columns, values, strict=True)))


def front_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return ``front_probability`` for every cost that was measured.

    Returns:
        The columns of ``front_probability``, with the cost of the variant in ``at`` and the measure's name in ``cost``.
    """
    table = _of_networks(table)
    costs = [cost for cost in COSTS | MORE_COSTS if (table["measure"] == cost).any()]
    fronts = [front_probability(table, cost).rename(columns={"cost": "at"}).assign(cost=cost) for cost in costs]
    return pd.concat(fronts, ignore_index=True) if fronts else pd.DataFrame(columns=pd.Index(FRONT_COLUMNS))


def _drawn_costs(
    table: pd.DataFrame, cost: str, variants: list[str], costs: NDArray[np.float64], seed: int
) -> NDArray[np.float64]:
    """Return the cost of each variant in each resampling, (R, V) or (V,); only one that has quartiles varies."""
    lower, upper = (_mean_by_variant(table, f"{cost}_{end}") for end in ("lower", "upper"))
    if not set(variants) <= lower.keys() & upper.keys():
        return costs
    below, above = (np.log([of[v] for v in variants]) - np.log(costs) for of in (lower, upper))
    normal = np.random.default_rng([seed, 1]).standard_normal((RESAMPLINGS, len(variants)))
    return costs * np.exp(np.where(normal < 0, -below, above) / NORMAL_QUARTILE * normal)


def equal_pairs(
    table: pd.DataFrame, by: str, margin: float = EQUAL_WITHIN, tolerance: float = EQUAL_COST
) -> pd.DataFrame:
    """Return all pairs of variants that are equal in number of groups, in parameters or in MACs, compared seed by seed.

    Args:
        table: long table of a study.
        by: ``groups``, the largest number of groups of any layer, which must be the same; or a cost (``parameters``,
            ``macs``), which may differ by ``tolerance``.
        margin: difference of accuracy that does not matter, fixed beforehand.
        tolerance: largest difference of a cost, as a fraction of the smaller one.

    Returns:
        variant, baseline, difference in test accuracy (variant − baseline), low, high (95%, Student; NaN below six
        seeds), least, most (of the seeds), n,
        p (sign flips, two-sided), p_equivalent (two one-sided tests against ± margin; NaN for one seed), note.
    """
    size = _groups(table) if by == "groups" else _mean_by_variant(table, by)
    variants = [variant for variant in dict.fromkeys(table["variant"]) if variant in size]
    table, rows = _of_networks(table), []
    for baseline, variant in combinations(variants, 2):
        small, large = sorted((size[baseline], size[variant]))
        if large - small > (0 if by == "groups" else tolerance * small):
            continue
        difference = _differences(table, "test_accuracy", variant, baseline)
        if difference.empty:
            continue
        interval, flipped = seed_estimate(difference.to_numpy(), OF_A_DIFFERENCE), sign_flip_test(difference)
        same = equivalence_test(difference, margin)
        rows.append((variant, baseline, interval.mean, interval.low, interval.high))
        rows[-1] += (min(interval.seeds), max(interval.seeds), interval.n, flipped.p, same.p)
        rows[-1] += ("; ".join(dict.fromkeys(filter(None, (flipped.note, same.note)))),)
    columns = ["variant", "baseline", "difference", "low", "high", "least", "most", "n", "p", "p_equivalent", "note"]
    return pd.DataFrame(rows, columns=pd.Index(columns)).astype({"p": float, "p_equivalent": float})


def partition_kinds(table: pd.DataFrame) -> dict[str, str]:
    """Return the kind of partition of each variant with groups: ``uniform``, ``logarithmic`` or ``other``.

    Groups are uniform if they differ by one channel at most. ``other`` is also a variant whose layers differ in kind.
    """
    kinds: dict[str, str] = {}
    for variant, text in _partitions(table):
        if text != "1":
            kind = _kind(text)
            kinds[variant] = kind if kinds.get(variant, kind) == kind else "other"
    return kinds


def _kind(text: str) -> str:
    if text.startswith("log:"):
        return "logarithmic"
    sizes = [int(size) for size in text.split(",")]
    return "uniform" if max(sizes) - min(sizes) <= 1 else "other"


def difference_at_equal_cost(
    table: pd.DataFrame, variants: Sequence[str], others: Sequence[str], cost: str, measure: str = "test_accuracy"
) -> pd.Series:
    """Return the difference of two families of variants at equal cost, per seed.

    Within each family the measure is interpolated linearly between its variants, against the logarithm of the cost;
    the difference is averaged over the logarithms of the costs that both families span, never extrapolated.

    Returns:
        variants − others by seed, for the seeds in which every variant of both was measured; empty if the families
        share no range of costs.
    """
    price = _mean_by_variant(table, cost)
    runs = _rows(table, measure, "").pivot_table("value", "seed", "variant")
    if not {*variants, *others} <= set(runs.columns) & set(price):
        return pd.Series(dtype=np.float64)
    runs = runs[[*variants, *others]].dropna()
    families = [sorted(family, key=lambda variant: price[variant]) for family in (variants, others)]
    at = [np.log([price[variant] for variant in family]) for family in families]
    low, high = max(x[0] for x in at), min(x[-1] for x in at)
    if low > high:
        return pd.Series(dtype=np.float64)
    knots = np.unique(np.clip(np.concatenate(at), low, high))
    gaps = []
    for _, run in runs.iterrows():
        ours, theirs = (
            np.interp(knots, x, run[family].to_numpy(np.float64)) for x, family in zip(at, families, strict=True)
        )
        gaps.append(ours - theirs)
    if not gaps:
        return pd.Series(dtype=np.float64)
    # One cost alone that both have: the difference there.
    means = np.trapezoid(gaps, knots) / (high - low) if high > low else np.array(gaps)[:, 0]
    return pd.Series(means, index=runs.index, dtype=np.float64)


def _mean_by_variant(table: pd.DataFrame, measure: str) -> dict[str, float]:
    """Return the mean over the rows of each variant."""
    means = _rows(table, measure, "").dropna(subset="value").groupby("variant")["value"].mean()
    return {str(variant): float(value) for variant, value in means.items()}


def _differences(table: pd.DataFrame, measure: str, variant: str, baseline: str) -> pd.Series:
    """Return variant − baseline by seed; empty if no seed has both."""
    rows = _rows(table, measure, "")
    by_seed = rows[rows["variant"].isin([variant, baseline])].pivot_table("value", "seed", "variant")
    if variant == baseline or not {variant, baseline} <= set(by_seed.columns):
        return pd.Series(dtype=np.float64)
    return (by_seed[variant] - by_seed[baseline]).dropna()


def _groups(table: pd.DataFrame) -> dict[str, int]:
    """Return the largest number of groups of any layer, by variant, from the texts of ``gconv.Partition``."""
    groups_of: dict[str, int] = {}
    for variant, text in _partitions(table):
        groups = text.count(",") + 1 if "," in text else int(text.removeprefix("log:"))
        groups_of[variant] = max(groups, groups_of.get(variant, 1))
    return groups_of


def _partitions(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Return every variant with every partition of its layers, as texts of ``gconv.Partition``."""
    built = table[table["null"].fillna("") == ""] if "null" in table else table  # a null may cut a layer otherwise
    pairs = built[["variant", "groups"]].drop_duplicates().fillna("")
    return [(str(variant), str(text)) for variant, text in pairs.itertuples(index=False) if text]


def _rows(table: pd.DataFrame, measure: str, layer: str) -> pd.DataFrame:
    rows = table[table["measure"] == measure]
    rows = rows[rows["layer"].fillna("") == layer]
    return rows[rows["null"].fillna("") == ""] if "null" in rows else rows


def _of_networks(table: pd.DataFrame) -> pd.DataFrame:
    """Return the few rows of whole networks: each look-up compares every text of the table that it gets."""
    return table[table["layer"].fillna("") == ""]
