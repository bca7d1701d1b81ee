"""Covariance between the filters of two adjacent layers, and the share of it within the groups.

Legend: C D filters of the first and the second layer, G groups.

The responses X1 and X2 of the two layers are whitened separately, because their raw covariance "is conflated with the
inherent covariances within X1 and X2". Then their covariance is X1 X2ᵀ / (N − 1) (Ioannou 2017, PhD thesis). The thesis
whitens the covariance (ZCA), so its result depends on the scale of each filter. Before a normalisation that scale is
arbitrary, so here each filter is first scaled to variance 1 (ZCA-cor, Kessy et al. 2018). The result is a function of
the covariances that ``responses.collect_pairs`` collects in one pass. Grouping alone makes it block-diagonal, because a
group reads nothing else. So compare it with the untrained network, and with other filters on the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.correlation import correlation_matrix
from analysis.stats import Inference, label_permutation_test

# Directions of less variance than this, relative to the largest, are rounding (about 1e-14 for float32 responses).
# They are projected out, because whitening would inflate them.
RANK_TOLERANCE = 1e-10


@dataclass(frozen=True)
class WhitenedCovariance:
    """Covariance between the whitened responses of two layers.

    Attributes:
        matrix: (C, D), entries −1 to 1; NaN in the rows and columns of dead filters.
        ranks: number of directions of each layer that were whitened.
        dead: number of filters of each layer that never vary.
        dependent: number of varying filters of each layer beyond its rank, which the other filters determine.
    """

    matrix: NDArray[np.float64]
    ranks: tuple[int, int]
    dead: tuple[int, int]
    dependent: tuple[int, int]


def whitened_covariance(
    first_CC: ArrayLike, second_DD: ArrayLike, cross_CD: ArrayLike, samples: int, standardise: bool = True
) -> WhitenedCovariance:
    """Return P₁^-½ P₁₂ P₂^-½, P the correlations: the covariance of two layers that are whitened separately.

    Dead filters are left out. Directions in which the others do not vary, by ``RANK_TOLERANCE``, are projected out. So
    every remaining direction has variance 1, and the singular values of the result are the canonical correlations. The
    scale of a filter changes nothing.

    Args:
        first_CC, second_DD: covariances of the first and of the second layer.
        cross_CD: covariance between the layers.
        samples: number of distinct samples; copies made by upsampling do not count (``PairStatistics.distinct``).
        standardise: True scales each filter to variance 1 first. False is the formula of the thesis, which depends on
            the scale of each filter.

    Raises:
        ValueError: the shapes do not fit; no filter of a layer varies; there are too few samples for the filters.
    """
    first, second, cross = (np.asarray(matrix, dtype=np.float64) for matrix in (first_CC, second_DD, cross_CD))
    if first.shape != (cross.shape[0],) * 2 or second.shape != (cross.shape[-1],) * 2 or cross.ndim != 2:
        raise ValueError(f"covariances of shapes {first.shape}, {second.shape} and {cross.shape} between do not fit")
    if not (np.isfinite(first).all() and np.isfinite(second).all() and np.isfinite(cross).all()):
        raise ValueError("responses must be finite; these hold NaN or infinity")
    living = [np.flatnonzero(~np.isnan(np.diag(correlation_matrix(side)))) for side in (first, second)]
    p, q = (len(columns) for columns in living)
    if not p or not q:
        raise ValueError(f"none of the {len(cross) if not p else len(second)} filters of a layer varies")
    if samples - 1 < p + q:
        raise ValueError(
            f"{samples} samples of {p} and {q} filters: whitening needs {p + q + 1} at least; with fewer, some "
            "directions of the two layers agree fully whatever the network, and no entry of the covariance is reliable"
        )
    if standardise:
        scales = [1 / np.sqrt(np.where(np.diag(side) > 0, np.diag(side), 1.0)) for side in (first, second)]
        first, second = (side * scale[:, None] * scale for side, scale in zip((first, second), scales, strict=True))
        cross = cross * scales[0][:, None] * scales[1]
    (root_first, rank_first), (root_second, rank_second) = (
        _whitening(side[np.ix_(columns, columns)]) for side, columns in zip((first, second), living, strict=True)
    )
    matrix = np.full(cross.shape, np.nan)
    matrix[np.ix_(*living)] = root_first @ cross[np.ix_(*living)] @ root_second
    return WhitenedCovariance(
        matrix,
        ranks=(rank_first, rank_second),
        dead=(len(first) - p, len(second) - q),
        dependent=(p - rank_first, q - rank_second),
    )


@dataclass(frozen=True)
class BlockEnergy:
    """Share of a covariance between two layers in the blocks that their groups link.

    Attributes:
        squared: share of the sum of squared entries.
        absolute: share of the sum of absolute values.
        chance: share of the number of entries, which is the expected share of a matrix without blocks.
        left_out: number of filters of each layer that are left out, because they are dead or not in exactly one group.
        share: (squared − chance) / (1 − chance), the share beyond chance: 0 without blocks and 1 if all energy is on
            them, for any number of groups.
        permute: function that returns ``test``, which takes longer than all the rest.
    """

    squared: float
    absolute: float
    chance: float
    left_out: tuple[int, int]
    permute: Callable[[], Inference] = field(repr=False, compare=False)

    @cached_property
    def test(self) -> Inference:
        """``squared`` and its p against permuted labels of the first layer, sizes kept; computed at the first use."""
        return self.permute()

    @property
    def share(self) -> float:
        """Share beyond chance, as in the class; NaN where the blocks are the whole matrix."""
        return (self.squared - self.chance) / (1 - self.chance) if self.chance < 1 else float("nan")


def block_energy(
    matrix_CD: ArrayLike, first_labels_C: ArrayLike, second_labels_D: ArrayLike, seed: int = 0
) -> BlockEnergy:
    """Return the on-block energy of a covariance between two layers.

    N samples add noise of 1 / N to each squared entry, on the blocks and off them; more, because pixels of one image
    are similar. The noise pulls the shares towards chance. So use many images, and equally many for all networks.

    Args:
        matrix_CD: ``WhitenedCovariance.matrix``.
        first_labels_C: the group of the second layer that reads each filter; negative if none or several do.
        second_labels_D: the group that computes each filter of the second layer, or that reads it.
        seed: seed of the permutations.

    Raises:
        ValueError: the labels do not fit, link nothing, or the matrix is zero.
    """
    matrix = np.asarray(matrix_CD, dtype=np.float64)
    first, second = np.asarray(first_labels_C, dtype=np.int64), np.asarray(second_labels_D, dtype=np.int64)
    if matrix.ndim != 2 or first.shape != matrix.shape[:1] or second.shape != matrix.shape[1:]:
        raise ValueError(f"labels of shapes {first.shape} and {second.shape} do not fit {matrix.shape} covariances")
    rows = (first >= 0) & ~np.isnan(matrix).all(1)
    columns = (second >= 0) & ~np.isnan(matrix).all(0)
    part, first, second = np.abs(matrix[np.ix_(rows, columns)]), first[rows], second[columns]
    linked = first[:, None] == second
    if not linked.any():
        of_first, of_second = ((np.unique(labels) + 1).tolist() for labels in (first, second))  # counted from 1
        raise ValueError(f"groups {of_first} and {of_second} of the two layers: none is linked")
    if not (part > 0).any():
        raise ValueError("all covariances are zero: no share of them lies anywhere")
    # Energy of every filter of the first layer with every group of the second: all that a labelling can move.
    groups = 1 + max(int(first.max()), int(second.max()))
    energy_CG = (part**2) @ np.eye(groups)[second]
    energy_CG /= energy_CG.sum()

    def share(labels: NDArray[np.int64]) -> float:
        return float(energy_CG[np.arange(len(labels)), labels].sum())

    return BlockEnergy(
        squared=share(first),
        absolute=float(part[linked].sum() / part.sum()),
        chance=float(linked.mean()),
        left_out=(int((~rows).sum()), int((~columns).sum())),
        permute=partial(label_permutation_test, first, share, "greater", seed),
    )


def _whitening(covariance: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """Return the symmetric root Σ^-½ of the pseudo-inverse, and its rank."""
    variance, direction = np.linalg.eigh(covariance)
    kept = variance > RANK_TOLERANCE * variance[-1]
    scaled = direction[:, kept] / np.sqrt(np.sqrt(variance[kept]))
    return scaled @ scaled.T, int(kept.sum())
