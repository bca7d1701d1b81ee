"""Separation of groups of filters by an attribute: colour, spatial frequency, orientation, selectivity.

Legend: n filters, G groups, P labelings. One attribute per filter, one group per filter.

Four statistics that do not depend on the order of the groups:

- difference: largest minus smallest group mean; with two groups their absolute difference;
- eta squared: the share of the variance of the attribute that lies between the groups;
- AUC: probability that a filter of one group has more of the attribute than a filter of another, for the group with
  more of it, ½ … 1; mean over all pairs of groups;
- information: mutual information of group and attribute, over the mean of their entropies, 0 … 1. Quantiles cut the
  attribute into as many bins as there are groups (two groups: the median), and equal values share a bin. So it can be 1
  only if all groups have one size.

Each statistic is tested against the same labels in random order; every group keeps its size. Chance alone makes each
greater than its least value, and more so for smaller groups. So no statistic means anything without its p.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from analysis.stats import DRAWS, Inference, permutation_p, permuted_labels

Statistic = Callable[[NDArray[np.float64], NDArray[np.int64]], NDArray[np.float64]]

ROWS = 1000  # labelings taken at once, to bound the memory
SPLIT_P, SPLIT_DIFFERENCE = 0.05, 0.1  # a split has a lower p of the area under the curve, and this difference of means


@dataclass(frozen=True)
class Separation:
    """Separation of the groups by one attribute; a value that cannot be computed is NaN, and its note gives the reason.

    Attributes:
        sizes: number of filters of each group that were compared.
        means: mean of the attribute in each of these groups.
        difference, eta_squared, auc, information: the statistics, with p by label permutation; see the head of this
            file.

    Notes count groups from 1, as figures do.
    """

    sizes: dict[int, int]
    means: dict[int, float]
    difference: Inference
    eta_squared: Inference
    auc: Inference
    information: Inference

    @property
    def is_split(self) -> bool:
        """True if the groups differ beyond chance, and by at least ``SPLIT_DIFFERENCE``."""
        return self.auc.p is not None and self.auc.p < SPLIT_P and self.difference.value >= SPLIT_DIFFERENCE


def separation(
    values: ArrayLike, labels: ArrayLike, kept: ArrayLike | None = None, permutations: int = DRAWS, seed: int = 0
) -> Separation:
    """Return the separation of the groups in one attribute.

    Args:
        values: (n,) attribute of each filter. Filters whose value is not finite are left out, and counted in the notes.
        labels: (n,) group that reads, or computes, each filter. Filters with a negative label have none and are left
            out.
        kept: (n,) True for the filters that count, by a rule stated beforehand (``colour.learned``); all by default.
        permutations: number of random labelings.
        seed: seed of the labelings.

    Raises:
        ValueError: the shapes do not fit.
    """
    attribute, group = np.asarray(values, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    chosen = np.ones(attribute.shape, dtype=bool) if kept is None else np.asarray(kept, dtype=bool)
    if attribute.ndim != 1 or group.shape != attribute.shape or chosen.shape != attribute.shape:
        shapes = f"values {attribute.shape}, labels {group.shape}, kept {chosen.shape}"
        raise ValueError(f"{shapes}: must be one of each per filter")
    member = chosen & (group >= 0) & np.isfinite(attribute)
    left_out = _left_out(int(group.size), chosen, chosen & (group < 0), chosen & (group >= 0) & ~member)
    attribute, group = attribute[member], group[member]
    sizes = {int(name): int(size) for name, size in zip(*np.unique(group, return_counts=True), strict=True)}
    means = {name: float(attribute[group == name].mean()) for name in sizes}
    hindrance = _hindrance(attribute, sizes)
    note = "; ".join(filter(None, [hindrance or _reach(sizes, permutations), left_out]))
    statistics: tuple[Statistic, ...] = (mean_range, eta_squared, mean_auc, normalised_information)
    if len(sizes) < 2:
        inferences = [Inference(math.nan, None, None, group.size, None, note)] * len(statistics)
    elif hindrance:
        inferences = [
            Inference(float(of(attribute, group[None])[0]), None, None, group.size, None, note) for of in statistics
        ]
    else:
        draws = np.concatenate([group[None], permuted_labels(group, permutations, seed)])
        parts = np.array_split(draws, math.ceil(len(draws) / ROWS))
        null = [np.concatenate([of(attribute, part) for part in parts]) for of in statistics]
        p = [permutation_p(float(row[0]), row[1:]) for row in null]
        inferences = [
            Inference(float(row[0]), None, None, group.size, chance, note) for row, chance in zip(null, p, strict=True)
        ]
    return Separation(sizes, means, *inferences)


def mean_range(values_n: NDArray[np.float64], labels_Pn: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (P,) largest minus smallest group mean under each labeling; all of them have the same groups."""
    member_GPn = _members(labels_Pn)
    return np.ptp(member_GPn @ values_n / member_GPn.sum(2), axis=0)


def eta_squared(values_n: NDArray[np.float64], labels_Pn: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (P,) sum of squares between the groups over the total one; 0 where all values are equal."""
    member_GPn = _members(labels_Pn)
    centred = values_n - values_n.mean()
    between = ((member_GPn @ centred) ** 2 / member_GPn.sum(2)).sum(0)
    return between / ((centred**2).sum() or 1.0)


def mean_auc(values_n: NDArray[np.float64], labels_Pn: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (P,) area under the curve (Mann–Whitney U over its largest value) of the higher group, mean over pairs."""
    member_GPn = _members(labels_Pn)
    sizes = member_GPn[:, 0].sum(1)
    beats_nn = (np.sign(values_n[:, None] - values_n) + 1) / 2  # ties count half
    areas = []
    for first in range(len(sizes)):
        beaten_Pn = member_GPn[first] @ beats_nn
        for second in range(first + 1, len(sizes)):
            area = (beaten_Pn * member_GPn[second]).sum(1) / (sizes[first] * sizes[second])
            areas.append(np.maximum(area, 1 - area))
    return np.mean(areas, axis=0)


def normalised_information(values_n: NDArray[np.float64], labels_Pn: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (P,) 2 I / (H of the binned attribute + H of the groups)."""
    member_GPn = _members(labels_Pn)
    count, groups = values_n.size, len(member_GPn)
    # As many filters in each quantile bin but for ties, which share one: exact, for midranks are whole or half.
    bin_n = ((rankdata(values_n) - 0.5) * groups) // count
    inside_nB = (bin_n[:, None] == np.unique(bin_n)).astype(np.float64)
    of_groups, of_bins = _entropy(member_GPn[:, 0].sum(1) / count), _entropy(inside_nB.sum(0) / count)
    joint_GPB = member_GPn @ inside_nB / count
    information = of_groups + of_bins - _entropy(joint_GPB.transpose(1, 0, 2).reshape(len(labels_Pn), -1))
    return 2 * information / (of_groups + of_bins)


def _members(labels_Pn: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return 1 where a filter belongs to a group, (G, P, n)."""
    return (labels_Pn == np.unique(labels_Pn[0])[:, None, None]).astype(np.float64)


def _entropy(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the entropy of shares along the last axis, in nats."""
    return -(share * np.log(np.where(share > 0, share, 1.0))).sum(-1)


def _left_out(count: int, chosen: NDArray, ungrouped: NDArray, without: NDArray) -> str:
    reasons = [
        (count - int(chosen.sum()), "by rule"),
        (int(ungrouped.sum()), "of no one group"),
        (int(without.sum()), "without the attribute"),
    ]
    listed = ", ".join(f"{number} {why}" for number, why in reasons if number)
    return f"of {count} filters left out: {listed}" if listed else ""


def _hindrance(values: NDArray[np.float64], sizes: dict[int, int]) -> str:
    """Return the reason why nothing can be tested; empty if it can."""
    if not sizes:
        return "no filter took part: nothing to separate"
    if len(sizes) == 1:
        return f"all filters that took part are of group {next(iter(sizes)) + 1}: nothing to separate"
    if max(sizes.values()) == 1:
        return "groups of one filter: nothing to permute"
    if np.ptp(values) <= 1e-12 * np.abs(values).max():
        return "all values equal: nothing to test"
    return ""


def _reach(sizes: dict[int, int], permutations: int) -> str:
    """Return a note on the smallest p that small groups can reach."""
    count = sum(sizes.values())
    ways = math.factorial(count) // math.prod(math.factorial(size) for size in sizes.values())
    renamings = math.prod(math.factorial(alike) for alike in Counter(sizes.values()).values())
    floor = max(renamings / ways, 1 / (1 + permutations))  # renaming groups of one size changes no statistic
    single = [str(name + 1) for name, size in sizes.items() if size == 1]
    notes = [f"group {', '.join(single)}: one filter"] if single else []
    return "; ".join(notes + ([f"p cannot fall below {floor:.3g}"] if floor > 0.05 else []))
