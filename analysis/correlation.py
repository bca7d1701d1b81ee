"""Correlation between filters, within and between groups.

The measure is the mean absolute correlation of the responses of two filters, over pairs in the same group (within) and
over pairs in different groups (between). The diagonal is left out (Ioannou et al. 2017, arXiv 1605.06489). Grouping
alone makes within exceed between, because each group has its own inputs. So a contrast is no finding until it is
compared with a null.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.stats import permutation_p, permuted_labels


def correlation_matrix(covariance: ArrayLike) -> NDArray[np.float64]:
    """Return correlations (C, C) from covariances (C, C).

    A filter that never varies (variance 0), or whose responses are not finite, has NaN in its row and column. The scale
    of a filter does not matter.
    """
    cov = np.asarray(covariance, dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        std = np.sqrt(np.clip(np.diag(cov), 0, None))
        dead = ~((std > 0) & np.isfinite(std))
        scale = np.where(dead, np.nan, std)
        corr = np.clip(cov / scale[:, None] / scale, -1, 1)
    np.fill_diagonal(corr, np.where(dead, np.nan, 1.0))
    return corr


@dataclass(frozen=True)
class GroupContrast:
    """Mean |r| within and between groups.

    Attributes:
        within: over pairs of filters of the same group; NaN if every group has one filter.
        between: over pairs of filters of different groups; NaN if there is one group.
        filters: number of filters in the means.
        dead: number of filters left out because they never vary.
    """

    within: float
    between: float
    filters: int
    dead: int

    @property
    def ratio(self) -> float:
        """Within / between; infinite if filters of different groups do not correlate at all."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.float64(self.within) / np.float64(self.between))

    @property
    def difference(self) -> float:
        """Within − between."""
        return self.within - self.between


def group_contrast(corr: ArrayLike, labels: ArrayLike) -> GroupContrast:
    """Return the mean absolute correlation within and between groups, diagonal excluded.

    Args:
        corr: (C, C) correlations; rows of NaN are dead filters.
        labels: (C,) group of each filter.

    Raises:
        ValueError: the shapes do not fit.
    """
    magnitude, group, dead = _alive(corr, labels)
    within, between = _means(magnitude, group[None])
    return GroupContrast(float(within[0]), float(between[0]), len(group), dead)


def mean_contrast(contrasts: Sequence[GroupContrast]) -> GroupContrast:
    """Return the means of within and between over the draws of a null; the numbers of filters are rounded means.

    Raises:
        ValueError: no contrast.
    """
    if not contrasts:
        raise ValueError("a mean over the draws of a null needs a draw")
    within, between, filters, dead = np.mean([[c.within, c.between, c.filters, c.dead] for c in contrasts], axis=0)
    return GroupContrast(float(within), float(between), round(filters), round(dead))


def contrast_test(corr: ArrayLike, labels: ArrayLike, permutations: int = 2000, seed: int = 0) -> float:
    """Return the one-sided p of within − between against permuted labels; every group keeps its size.

    Raises:
        ValueError: the shapes do not fit, or there is no pair within or none between groups.
    """
    magnitude, group, _ = _alive(corr, labels)
    draws = np.concatenate([group[None], permuted_labels(group, permutations, seed)])
    within, between = _means(magnitude, draws)
    difference = within - between
    if not np.isfinite(difference[0]):
        raise ValueError(f"groups of {np.unique(group, return_counts=True)[1].tolist()} filters have no contrast")
    return permutation_p(float(difference[0]), difference[1:])


def _alive(corr: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64], int]:
    """Return |r| of the filters that vary, with an empty diagonal, their groups, and the number that never vary."""
    matrix, group = np.asarray(corr, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or group.shape != matrix.shape[:1]:
        raise ValueError(f"correlations of shape {matrix.shape} and labels of shape {group.shape} do not fit")
    alive = ~np.isnan(np.diag(matrix))
    magnitude = np.abs(matrix[np.ix_(alive, alive)])
    np.fill_diagonal(magnitude, 0.0)
    return magnitude, group[alive], int((~alive).sum())


def _means(magnitude: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[NDArray, NDArray]:
    """Return within and between means of |r| (C, C), its diagonal empty, under each row of ``labels`` (P, C).

    Either sum adds its own pairs, none is a difference: where filters do not correlate it is exactly zero.
    """
    count = magnitude.shape[0]
    within_sum, between_sum, within_pairs = (np.zeros(len(labels)) for _ in range(3))
    for group in np.unique(labels[0]):
        member = (labels == group).astype(np.float64)
        reached = member @ magnitude
        within_sum += np.einsum("pc,pc->p", reached, member)
        between_sum += np.einsum("pc,pc->p", reached, 1 - member)
        size = member.sum(1)
        within_pairs += size * (size - 1)
    between_pairs = count * (count - 1) - within_pairs
    with np.errstate(invalid="ignore", divide="ignore"):
        within = np.where(within_pairs > 0, within_sum / within_pairs, np.nan)
        between = np.where(between_pairs > 0, between_sum / between_pairs, np.nan)
    return within, between
