"""Latent partition of a dense layer: groups of its filters by the filters of the next layer that they connect to.

Legend: O filters of the reading layer, C filters that it reads, K kernel, F factors.

Voss et al. 2021 (Branch Specialization) take the singular vectors of the absolute weights between two layers, and find
colour first and frequency second. In a non-negative matrix the first pair of singular vectors only shows how strongly
each filter is connected. So each weight is divided by the roots of its row sum and of its column sum. Then the first
pair is known exactly, and it is subtracted (Dhillon 2001, bipartite spectral graph partitioning; this is correspondence
analysis). Spectral groups come from the same normalised matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from sklearn.cluster import SpectralCoclustering

from analysis.stats import DRAWS, Inference, label_permutation_test, permutation_p, permuted_labels


@dataclass(frozen=True)
class Factors:
    """The main ways in which filters differ in what they connect to, the largest first.

    Attributes:
        readers: (F, O) coordinate of each filter of the reading layer; NaN for one without connections.
        read: (F, C) coordinate of each filter that is read; NaN for one that nothing reads. Both are zero in a factor
            that explains nothing.
        explained: (F,) share of the squared departure from "every filter connects equally to all".
    """

    readers: NDArray[np.float64]
    read: NDArray[np.float64]
    explained: NDArray[np.float64]


def coupling(weight_OCKK: ArrayLike) -> NDArray[np.float64]:
    """Return how strongly each filter reads each input (O, C): the sum of its absolute weights over the kernel.

    Raises:
        ValueError: not weights (O, C, K, K), or some are not finite.
    """
    weight = np.asarray(weight_OCKK, dtype=np.float64)
    if weight.ndim != 4 or not np.isfinite(weight).all():
        raise ValueError(f"weights of shape {weight.shape}: must be (O, C, K, K), and finite")
    return np.abs(weight).sum((2, 3))


def factors(coupling_OC: ArrayLike, count: int = 2) -> Factors:
    """Return the first factors of the connections between two layers; see the head of this file.

    The sign of a factor is arbitrary. Here the largest absolute coordinate of the filters read is positive.

    Args:
        coupling_OC: non-negative, as ``coupling`` returns it.
        count: number of factors F.

    Raises:
        ValueError: another shape; more factors than the matrix has.
    """
    matrix, rows, columns = _living(coupling_OC)
    most = min(rows.sum(), columns.sum()) - 1
    if not 1 <= count <= most:
        raise ValueError(f"{count} factors of {rows.sum()} × {columns.sum()} connected filters: must be 1 to {most}")
    row, column = np.sqrt(matrix.sum(1)), np.sqrt(matrix.sum(0))
    scaled = matrix / np.outer(row, column)
    left, size, right = np.linalg.svd(scaled - np.outer(row, column) / matrix.sum(), full_matrices=False)
    size = np.where(size > 1e-12, size, 0.0)  # the largest possible is 1; smaller ones are rounding errors
    readers, read = np.full((count, rows.size), np.nan), np.full((count, columns.size), np.nan)
    there = (size[:count] > 0)[:, None]
    readers[:, rows], read[:, columns] = there * (left / row[:, None]).T[:count], there * (right / column)[:count]
    living = read[:, columns]
    sign = np.where(living[np.arange(count), np.abs(living).argmax(1)] < 0, -1.0, 1.0)[:, None]
    total = (size**2).sum()
    return Factors(readers * sign, read * sign, size[:count] ** 2 / (total if total > 0 else 1.0))


def associations(
    factors_FC: ArrayLike,
    attribute: ArrayLike,
    kept: ArrayLike | None = None,
    permutations: int = DRAWS,
    seed: int = 0,
) -> list[Inference]:
    """Return the absolute rank correlation (Spearman) of each factor with an attribute of the filters, and its p.

    Each p is that of one factor. For several factors, pass all p through ``stats.false_discovery_rates``.

    Args:
        factors_FC: coordinates, one factor per row.
        attribute: (C,) colour, frequency, … of each filter.
        kept: (C,) True for the filters that count, by a rule stated beforehand (``colour.learned``); all by default.
        permutations: number of random orders of the attribute.
        seed: seed of these orders.

    Raises:
        ValueError: the shapes do not fit.
    """
    coordinates, values = np.asarray(factors_FC, dtype=np.float64), np.asarray(attribute, dtype=np.float64)
    chosen = np.ones(values.shape, dtype=bool) if kept is None else np.asarray(kept, dtype=bool)
    if coordinates.ndim != 2 or values.shape != coordinates.shape[1:] or chosen.shape != values.shape:
        shapes = f"factors {coordinates.shape}, attribute {values.shape}, kept {chosen.shape}"
        raise ValueError(f"{shapes}: must be of the same filters")
    member = chosen & np.isfinite(values) & np.isfinite(coordinates).all(0)
    count = int(member.sum())
    left_out = f"{values.size - count} of {values.size} filters left out" if count < values.size else ""
    orders = np.concatenate([np.arange(count)[None], permuted_labels(np.arange(count), permutations, seed)])
    ranks = _standardised(values[member])
    inferences = []
    for coordinate in coordinates[:, member]:
        other = _standardised(coordinate)
        if count < 3 or not ranks.any() or not other.any():
            why = f"{count} filters" if count < 3 else "all values equal"
            note = "; ".join(filter(None, [f"{why}: no correlation", left_out]))
            inferences.append(Inference(math.nan, None, None, count, None, note))
            continue
        null = np.abs(ranks[orders] @ other)
        inferences.append(
            Inference(float(null[0]), None, None, count, permutation_p(float(null[0]), null[1:]), left_out)
        )
    return inferences


def spectral_groups(coupling_OC: ArrayLike, groups: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the group of each reader (O,) and of each filter read (C,) by spectral co-clustering (Dhillon 2001).

    Group k of the readers reads mostly group k of the filters. A filter without connections has −1.

    Args:
        coupling_OC: non-negative, as ``coupling`` returns it.
        groups: number of groups.
        seed: seed of the clustering.

    Raises:
        ValueError: another shape, or fewer connected filters than groups.
    """
    matrix, rows, columns = _living(coupling_OC)
    most = min(int(rows.sum()), int(columns.sum()))
    if not 2 <= groups <= most:
        raise ValueError(f"{groups} groups of {rows.sum()} × {columns.sum()} connected filters: must be 2 to {most}")
    clustering = SpectralCoclustering(groups, random_state=seed).fit(matrix)
    readers, read = np.full(rows.size, -1), np.full(columns.size, -1)
    readers[rows], read[columns] = clustering.row_labels_, clustering.column_labels_
    return readers, read


def agreement(clusters: ArrayLike, imposed: ArrayLike, permutations: int = DRAWS, seed: int = 0) -> Inference:
    """Return the adjusted Rand index (Hubert & Arabie 1985) of two partitions: 1 if equal, 0 on average by chance.

    p is one-sided, from permuting the imposed labels.

    Args:
        clusters: (n,) labels of the first partition; negative if a filter is in no group: it is left out.
        imposed: (n,) labels of the second partition, likewise.
        permutations: number of random orders of the imposed labels, if there are too many orders to try all.
        seed: seed of the permutations.

    Raises:
        ValueError: the shapes do not fit, or no filter has both labels.
    """
    first, second = np.asarray(clusters, dtype=np.int64), np.asarray(imposed, dtype=np.int64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"labels of shapes {first.shape} and {second.shape}: must be of the same filters")
    both = (first >= 0) & (second >= 0)
    if not both.any():
        raise ValueError(f"none of {first.size} filters is in a group of both partitions")
    first, second = (np.unique(side[both], return_inverse=True)[1] for side in (first, second))
    names = int(second.max()) + 1
    of_first, of_second = _pairs(np.bincount(first)), _pairs(np.bincount(second))
    expected = of_first * of_second / max(_pairs(np.array([first.size])), 1.0)
    room = (of_first + of_second) / 2 - expected

    def index(labels: NDArray[np.int64]) -> float:
        return (_pairs(np.bincount(first * names + labels)) - expected) / room if room > 0 else 1.0

    result = label_permutation_test(second, index, seed=seed, permutations=permutations)
    left_out = f"{both.size - first.size} of {both.size} filters left out" if first.size < both.size else ""
    note = "; ".join(filter(None, [result.note, left_out]))
    return Inference(result.value, None, None, result.n, result.p, note)


def _living(coupling_OC: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the matrix without rows and columns of zeros, and the indices that it keeps."""
    matrix = np.asarray(coupling_OC, dtype=np.float64)
    if matrix.ndim != 2 or not np.isfinite(matrix).all() or (matrix < 0).any():
        raise ValueError(f"coupling of shape {matrix.shape}: must be (O, C), finite and nowhere negative")
    rows, columns = (matrix.sum(axis) > 0 for axis in (1, 0))
    return matrix[np.ix_(rows, columns)], rows, columns


def _standardised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return midranks, centred and of length 1; zeros where all are equal."""
    if values.size == 0:
        return values
    ranks = rankdata(values)
    ranks = ranks - ranks.mean()
    return ranks / (np.linalg.norm(ranks) or 1.0)


def _pairs(counts: NDArray[np.int64]) -> float:
    return float((counts * (counts - 1) / 2).sum())
