"""Partitions of a layer that was trained without groups, as nulls of a layer that was trained with groups.

Legend: C filters, P draws.

A dense layer has no groups. So the contrast within − between of any partition of its filters is one without grouping.
The partition is random, or in channel order, or a spectral clustering of |r|, which searches for the largest contrast.
The clustering uses the same correlations as the contrast, so its contrast is an upper bound. To judge it on other
images, pass its labels and their correlations to ``group_contrast``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.manifold import spectral_embedding

from analysis.correlation import GroupContrast, group_contrast, mean_contrast
from analysis.nulls import (
    ARBITRARY_PARTITION,
    CONTIGUOUS_PARTITION,
    SIZED_SPECTRAL_PARTITION,
    SPECTRAL_PARTITION,
)
from analysis.stats import permuted_labels

# Joins filters that do not correlate at all, since the embedding needs a graph in one piece.
FAINTEST_LINK = 1e-9
ROUNDS = 100


@dataclass(frozen=True)
class NullPartition:
    """A layer under a partition that is not its own.

    Attributes:
        labels: (P, C) the group of each filter in each draw.
        contrast: mean over the draws.
        note: limits of the result, in plain words; empty without any.
    """

    labels: NDArray[np.int64]
    contrast: GroupContrast
    note: str = ""


def null_partitions(
    corr: ArrayLike, sizes: Sequence[int], draws: int = 1000, seed: int = 0
) -> dict[str, NullPartition]:
    """Return the contrast of a dense layer under every kind of null partition.

    Args:
        corr: (C, C) correlations of the filters of the dense layer; rows of NaN are dead filters.
        sizes: group sizes of the grouped layer that is compared with it; they add up to C.
        draws: number of random partitions; of the other kinds there is one.
        seed: seed of the draws and of the clustering.

    Returns:
        The result of each null by its name: "arbitrary partition", "contiguous partition", "spectral partition" (of
        any sizes) and "spectral partition, sizes kept".

    Raises:
        ValueError: the sizes do not fit, or no more filters vary than there are groups.
    """
    matrix = _square(corr)
    _fit(matrix, sizes)
    contiguous = np.repeat(np.arange(len(sizes)), sizes)
    spectral = spectral_partition(matrix, len(sizes), seed)
    spectral_sizes = np.bincount(spectral[spectral >= 0], minlength=len(sizes)).tolist()
    differ = sorted(spectral_sizes) != sorted(sizes)
    cuts = {
        ARBITRARY_PARTITION: (permuted_labels(contiguous, draws, seed), ""),
        CONTIGUOUS_PARTITION: (contiguous[None], ""),
        SPECTRAL_PARTITION: (
            spectral[None],
            f"groups of {spectral_sizes} instead of {list(sizes)} filters" if differ else "",
        ),
        SIZED_SPECTRAL_PARTITION: (sized_spectral_partition(matrix, sizes, seed)[None], ""),
    }
    return {
        name: NullPartition(labels, mean_contrast([group_contrast(matrix, row) for row in labels]), note)
        for name, (labels, note) in cuts.items()
    }


def spectral_partition(corr: ArrayLike, groups: int, seed: int = 0) -> NDArray[np.int64]:
    """Cluster filters by |r| into groups of any sizes: spectral clustering (Ng, Jordan & Weiss 2001; scikit-learn's).

    Returns:
        (C,) group of each filter; −1 for a dead one.

    Raises:
        ValueError: no more filters vary than there are groups.
    """
    matrix = _square(corr)
    living, place = _embedding(matrix, groups, seed)
    labels = np.full(len(matrix), -1, dtype=np.int64)
    labels[living] = _clusters(place, groups, seed)[1]
    return labels


def sized_spectral_partition(corr: ArrayLike, sizes: Sequence[int], seed: int = 0) -> NDArray[np.int64]:
    """Cluster filters by |r| into groups of given sizes: spectral clustering, then k-means with fixed sizes.

    The coordinates are those of ``spectral_partition``. Its largest cluster gives the first centre of the largest
    group, and so on. Then two steps repeat until nothing changes: each centre gets as many filters as its group has, at
    the least sum of squared distances (linear assignment); each centre moves to the mean of its filters.

    Args:
        corr: (C, C) correlations; rows of NaN are dead filters, which are put into the groups last.
        sizes: number of filters of each group; they add up to C.
        seed: seed of the clustering.

    Returns:
        (C,) group of each filter, ``sizes[g]`` of them in group g.

    Raises:
        ValueError: the sizes do not fit, or no more filters vary than there are groups.
    """
    matrix = _square(corr)
    _fit(matrix, sizes)
    living, place = _embedding(matrix, len(sizes), seed)
    centres_found, clusters = _clusters(place, len(sizes), seed)
    by_size = np.argsort(-np.bincount(clusters, minlength=len(sizes)), kind="stable")
    centres = np.empty_like(centres_found)
    centres[np.argsort(-np.asarray(sizes), kind="stable")] = centres_found[by_size]
    slots = np.repeat(np.arange(len(sizes)), sizes)
    taken = _assign(place, centres[slots])
    for _ in range(ROUNDS):
        before = slots[taken]
        for group in np.unique(before):
            centres[group] = place[before == group].mean(0)
        taken = _assign(place, centres[slots])
        if (slots[taken] == before).all():
            break
    labels = np.empty(len(matrix), dtype=np.int64)
    labels[living] = slots[taken]
    labels[np.setdiff1d(np.arange(len(matrix)), living)] = np.delete(slots, taken)
    return labels


def _square(corr: ArrayLike) -> NDArray[np.float64]:
    matrix = np.asarray(corr, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"correlations of shape {matrix.shape} must be (C, C)")
    return matrix


def _fit(matrix: NDArray[np.float64], sizes: Sequence[int]) -> None:
    if not sizes or min(sizes) < 1 or sum(sizes) != len(matrix):
        raise ValueError(f"groups of {list(sizes)} filters must each have one and add up to {len(matrix)}")


def _embedding(matrix: NDArray[np.float64], groups: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the filters that vary, and their coordinates: first eigenvectors of the normalised Laplacian of |r|."""
    living = np.flatnonzero(~np.isnan(np.diag(matrix)))
    if not 1 <= groups < living.size:
        raise ValueError(f"{living.size} filters that vary cannot be clustered into {groups} groups: more are needed")
    affinity = np.maximum(np.abs(matrix[np.ix_(living, living)]), FAINTEST_LINK)
    return living, spectral_embedding(affinity, n_components=groups, drop_first=False, random_state=seed)


def _assign(place: NDArray[np.float64], slots: NDArray[np.float64]) -> NDArray[np.int64]:
    """Assign a slot to each filter, at the least sum of squared distances."""
    return linear_sum_assignment(((place[:, None] - slots) ** 2).sum(-1))[1]


def _clusters(place: NDArray[np.float64], groups: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the centres of the clusters and the label of each filter."""
    means = KMeans(groups, n_init=10, random_state=seed).fit(place)  # type: ignore[arg-type]
    return np.asarray(means.cluster_centers_), np.asarray(means.labels_, dtype=np.int64)
