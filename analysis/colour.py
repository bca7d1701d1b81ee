"""Colour selectivity of first-layer filters, and how it separates the groups that read them.

Legend: O filters, K kernel. Filters are weights (O, 3, K, K) on RGB inputs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import uniform_filter

from analysis.stats import permutation_p, permuted_labels

# A filter that never left its initialisation is RGB noise: two thirds of its energy lie off the grey axis, so it looks
# coloured. A 3 × 3 mean leaves a tenth of its energy, and more than this share of a learned filter's.
LEARNED_SMOOTHNESS = 0.3


def colour_index(filters_O3KK: ArrayLike) -> NDArray[np.float64]:
    """Share of each filter's energy off the grey axis (1, 1, 1)/√3: 0 for a grey filter, 2/3 for RGB noise.

    Returns:
        (O,); NaN for a filter that is zero throughout.

    Raises:
        ValueError: the filters do not read three channels.
    """
    filters = _rgb(filters_O3KK)
    energy = (filters**2).sum((1, 2, 3))
    grey = 3 * (filters.mean(1) ** 2).sum((1, 2))
    return 1 - np.divide(grey, energy, out=np.full(len(filters), np.nan), where=energy > 0)


def smoothness(filters_O3KK: ArrayLike) -> NDArray[np.float64]:
    """Share of each filter's energy that survives a 3 × 3 mean: 0.1 for noise, towards 1 for broad structure.

    Returns:
        (O,); NaN for a filter that is zero throughout.
    """
    filters = _rgb(filters_O3KK)
    energy = (filters**2).sum((1, 2, 3))
    kept = (uniform_filter(filters, 3, axes=(2, 3), mode="constant") ** 2).sum((1, 2, 3))
    return np.divide(kept, energy, out=np.full(len(filters), np.nan), where=energy > 0)


def learned(filters_O3KK: ArrayLike) -> NDArray[np.bool_]:
    """(O,) Which filters left their initialisation: smoothness above ``LEARNED_SMOOTHNESS``."""
    return smoothness(filters_O3KK) > LEARNED_SMOOTHNESS


def colour_difference(colour: ArrayLike, labels: ArrayLike) -> float:
    """Largest minus smallest group mean of the colour index; with two groups their absolute difference."""
    values, group = np.asarray(colour, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    return float(_spread(values, group[None])[0])


def colour_difference_test(colour: ArrayLike, labels: ArrayLike, permutations: int = 2000, seed: int = 0) -> float:
    """Permutation p of ``colour_difference`` when the filters are dealt to the groups at random, sizes kept.

    Raises:
        ValueError: fewer than two groups have a filter.
    """
    values, group = np.asarray(colour, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if len(np.unique(group)) < 2:
        raise ValueError("a difference needs filters in at least two groups")
    spread = _spread(values, np.concatenate([group[None], permuted_labels(group, permutations, seed)]))
    return permutation_p(float(spread[0]), spread[1:])


def _spread(values: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Range of the group means of ``values`` (O,) under each row of ``labels`` (P, O)."""
    means = []
    for group in np.unique(labels[0]):
        member = labels == group
        means.append(member @ values / member.sum(1))
    return np.max(means, axis=0) - np.min(means, axis=0)


def _rgb(filters_O3KK: ArrayLike) -> NDArray[np.float64]:
    filters = np.asarray(filters_O3KK, dtype=np.float64)
    if filters.ndim != 4 or filters.shape[1] != 3:
        raise ValueError(f"filters of shape {filters.shape} do not read RGB; (O, 3, K, K) do")
    return filters
