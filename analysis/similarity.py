"""Similarity of two sets of features: CKA, canonical correlations, Procrustes; between the groups of a layer.

Legend: N batch, C channels, H W space, S samples, P Q features of two sets, G groups. Every pixel is a sample.

All measures are functions of the moments of the responses. These are collected in one pass, in memory of a few C × C
matrices, and serve any grouping of the features, random ones too. For with linear kernels HSIC is a sum over features,
HSIC(X, Y) = Σ_i∈X Σ_j∈Y HSIC(i, j).

Groups of different sizes cannot be compared directly, because each measure depends on the numbers of features of both
sets, the unbiased CKA least. ``random_splits`` of a dense layer gives a null of the same sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from analysis.correlation import correlation_matrix
from analysis.responses import ResponseStatistics, samples_in_parts
from analysis.stats import permuted_labels

Columns = NDArray[np.int64]

# Directions with less of the variance than this (of standardised features, relative to the largest) are rounding.
RANK_TOLERANCE = 1e-10


@dataclass(frozen=True)
class Moments:
    """Moments of C features that the similarities are computed from.

    Attributes:
        covariance: (C, C), with S − 1.
        hsic: (C, C) unbiased HSIC of linear kernels between every two features.
        samples: S.
    """

    covariance: NDArray[np.float64]
    hsic: NDArray[np.float64]
    samples: int

    @cached_property
    def biased_hsic(self) -> NDArray[np.float64]:
        """(C, C) the biased HSIC between every two features, which is their squared covariance."""
        return self.covariance**2

    @cached_property
    def alive(self) -> NDArray[np.bool_]:
        """True for the features that vary, (C,); the others take part in no similarity."""
        return ~np.isnan(np.diag(correlation_matrix(self.covariance)))

    @cached_property
    def whitenings(self) -> dict[bytes, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Whitenings of each set of features so far; several similarities need them."""
        return {}


Similarity = Callable[[Moments, Columns, Columns], float]


class MomentStatistics:
    """Moments of one layer's responses, accumulated batch by batch; the same however the samples are batched.

    Attributes:
        responses: count, mean and covariance, gathered on the way.
    """

    def __init__(self) -> None:
        self.responses = ResponseStatistics()
        self._third: Tensor | None = None
        self._fourth: Tensor

    def add(self, x_NCHW: Tensor) -> None:
        """Add the responses of one batch, (N, C, H, W) or (S, C)."""
        for samples_CS in samples_in_parts(x_NCHW):
            x_CS = self.responses.add_samples(samples_CS)
            if self._third is None:
                self._third, self._fourth = (x_CS.new_zeros(len(x_CS), len(x_CS)) for _ in range(2))
            square_CS = x_CS * x_CS
            self._third.addmm_(square_CS, x_CS.T)
            self._fourth.addmm_(square_CS, square_CS.T)

    @property
    def moments(self) -> Moments:
        """The moments of all samples so far.

        With X and Y centred, d_s = |x_s|² and e_s = |y_s|², the unbiased HSIC₁ (Song et al. 2012; Nguyen et al. 2021,
        eq. 3) is [‖XᵀY‖² − S/(S−2) Σ d_s e_s + Σ d_s Σ e_s / ((S−1)(S−2))] / (S(S−3)), without an S × S matrix. Pixels
        of one image are not independent, but the formula subtracts the bias of independent samples. So use many
        images.

        Raises:
            ValueError: fewer than four samples, or responses that are not finite.
        """
        n = self.responses.count
        if self._third is None or n < 4:
            raise ValueError(f"an unbiased HSIC needs four samples, not {n}")
        covariance = self.responses.covariance.numpy()
        if not np.isfinite(covariance).all():
            raise ValueError("responses must be finite; these hold NaN or infinity")
        products = covariance * (n - 1)
        energy = np.diag(products)
        # The sums are about the mean of the first samples; here they become sums about the mean of all.
        mean = (self.responses.mean - self.responses.shift).numpy()
        cross = self._third.cpu().numpy() * mean
        fourth = self._fourth.cpu().numpy() - 2 * (cross + cross.T) + 4 * np.outer(mean, mean) * products
        fourth += np.outer(energy, mean**2) + np.outer(mean**2, energy) + 3 * n * np.outer(mean, mean) ** 2
        hsic = products**2 - n / (n - 2) * fourth + np.outer(energy, energy) / ((n - 1) * (n - 2))
        return Moments(covariance, hsic / (n * (n - 3)), n)


def moments(x_SC: ArrayLike) -> Moments:
    """Return the moments of responses that are all in memory.

    Raises:
        ValueError: fewer than four samples, or responses that are not finite.
    """
    statistics = MomentStatistics()
    statistics.add(torch.from_numpy(np.array(x_SC, dtype=np.float64)))
    return statistics.moments


def compare(measure: Similarity, x_SP: ArrayLike, y_SQ: ArrayLike) -> float:
    """Return the similarity of two sets of responses to the same samples, each set in any unit.

    Raises:
        ValueError: not as many samples of either, or what the measure refuses.
    """
    x, y = np.asarray(x_SP, dtype=np.float64), np.asarray(y_SQ, dtype=np.float64)
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(f"responses of shapes {x.shape} and {y.shape} must be samples × features of the same samples")
    columns = np.arange(x.shape[1] + y.shape[1])
    # Each set is scaled on its own, because the others of a set decide if a feature varies.
    x, y = (side / (float(np.abs(side).max(initial=0)) or 1.0) for side in (x, y))
    return measure(moments(np.hstack([x, y])), columns[: x.shape[1]], columns[x.shape[1] :])


def biased_cka(of: Moments, first: Columns, second: Columns) -> float:
    """Return the linear CKA, ‖C_xy‖² / (‖C_xx‖ ‖C_yy‖) (Kornblith et al. 2019), 0 to 1.

    It rises with the number of features: for random responses of more features than samples it is close to 1.

    Raises:
        ValueError: none of the features of a set varies.
    """
    return _normalised(of.biased_hsic, _living(of, first), _living(of, second))


def unbiased_cka(of: Moments, first: Columns, second: Columns) -> float:
    """Return the linear CKA with the unbiased HSIC (Nguyen et al. 2021), −1 to 1; about 0 for independent features.

    Raises:
        ValueError: none of the features of a set varies, or each in single samples alone.
    """
    first, second = _living(of, first), _living(of, second)
    for columns in (first, second):
        block = np.ix_(columns, columns)
        if of.hsic[block].sum() <= 1e-12 * of.biased_hsic[block].sum():
            raise ValueError(f"{columns.size} features that vary in single samples alone have no unbiased CKA")
    return _normalised(of.hsic, first, second)


@dataclass(frozen=True)
class CanonicalCorrelations:
    """Canonical correlations between two sets of features.

    Attributes:
        correlations: (R,) descending, R the smaller rank.
        weights: (R,) weight of each canonical variate in the responses of the first set; their sum is 1.
        ranks: number of dimensions of each set.
        dead: number of features of each set that are left out because they never vary.
        dependent: number of features of each set beyond its rank, which the other features determine.
    """

    correlations: NDArray[np.float64]
    weights: NDArray[np.float64]
    ranks: tuple[int, int]
    dead: tuple[int, int]
    dependent: tuple[int, int]


def canonical_correlations(of: Moments, first: Columns, second: Columns) -> CanonicalCorrelations:
    """Return the singular values ρ of R_xx^-½ R_xy R_yy^-½, R the correlations of the features.

    The weights are those of projection-weighted CCA (Morcos et al. 2018): with h_i the canonical variates of the first
    set and x_j its features, α_i = Σ_j |⟨h_i, x_j⟩|, over Σ α.

    Raises:
        ValueError: too few samples for so many features, or none of the features of a set varies.
    """
    living = [_living(of, first), _living(of, second)]
    p, q = (columns.size for columns in living)
    if of.samples - 1 < p + q:
        raise ValueError(
            f"canonical correlations of {p} and {q} features need {p + q + 1} samples at least, not {of.samples}: "
            "some are 1 whatever the responses, and their mean tells nothing; unbiased CKA can be had"
        )
    std = np.sqrt(np.diag(of.covariance))
    (white_x, corr_xx), (white_y, _) = (_whitening(of, columns) for columns in living)
    scale = np.outer(std[living[0]], std[living[1]])
    u, rho, _ = np.linalg.svd(white_x.T @ (of.covariance[np.ix_(*living)] / scale) @ white_y, full_matrices=False)
    alpha = np.abs(std[living[0]][:, None] * (corr_xx @ white_x @ u)).sum(0)
    ranks = (white_x.shape[1], white_y.shape[1])
    return CanonicalCorrelations(
        correlations=np.clip(rho, 0, 1),
        weights=alpha / alpha.sum(),
        ranks=ranks,
        dead=(len(first) - p, len(second) - q),
        dependent=(p - ranks[0], q - ranks[1]),
    )


def mean_cca(of: Moments, first: Columns, second: Columns) -> float:
    """Return the mean canonical correlation, 0 to 1 (Raghu et al. 2017); raises as ``canonical_correlations``."""
    return float(canonical_correlations(of, first, second).correlations.mean())


def pwcca(of: Moments, first: Columns, second: Columns) -> float:
    """Return the projection-weighted mean Σ α_i ρ_i / Σ α_i (Morcos et al. 2018), 0 to 1.

    The weights are those of the first set, so the mean is not symmetric. Raises as ``canonical_correlations``.
    """
    canonical = canonical_correlations(of, first, second)
    return float(canonical.correlations @ canonical.weights)


def procrustes(of: Moments, first: Columns, second: Columns) -> float:
    """Return the orthogonal Procrustes similarity s = ‖C_xy‖_* / √(tr C_xx tr C_yy), 0 to 1.

    Both sets are centred and scaled to Frobenius norm 1, the smaller one padded with zeros. The distance of Ding et al.
    2021 under that normalisation is 2 − 2 s, the angle of Williams et al. 2021 arccos s.

    Raises:
        ValueError: none of the features of a set varies.
    """
    first, second = _living(of, first), _living(of, second)
    variance = np.diag(of.covariance)
    aligned = np.linalg.svd(of.covariance[np.ix_(first, second)], compute_uv=False).sum()
    return float(aligned / np.sqrt(variance[first].sum() * variance[second].sum()))


def between_groups(of: Moments, labels: ArrayLike, measure: Similarity) -> NDArray[np.float64]:
    """Return (G, G) similarity of every group to every other, in the order of their labels; the diagonal is 1.

    Args:
        of: moments of the layer.
        labels: (C,) group of each feature; negative if it belongs to none.
        measure: ``unbiased_cka``, ``mean_cca``, ``procrustes``, …

    Raises:
        ValueError: the labels do not fit, or as the measure.
    """
    group = np.asarray(labels, dtype=np.int64)
    if group.shape != of.covariance.shape[:1]:
        raise ValueError(f"labels of shape {group.shape} do not fit {len(of.covariance)} features")
    sets = [np.flatnonzero(group == name) for name in np.unique(group[group >= 0])]
    similarity = np.eye(len(sets))
    for i, first in enumerate(sets):
        for j, second in enumerate(sets):
            if i != j:
                similarity[i, j] = measure(of, first, second)
    return similarity


def mean_between(similarity_GG: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over pairs of different groups of similarities (…, G, G).

    Raises:
        ValueError: fewer than two groups.
    """
    groups = similarity_GG.shape[-1]
    if groups < 2:
        raise ValueError(f"a similarity between groups needs two, not {groups}")
    return similarity_GG[..., ~np.eye(groups, dtype=bool)].mean(-1)


def random_splits(
    dense: Moments, sizes: Sequence[int], measure: Similarity, draws: int = 1000, seed: int = 0
) -> NDArray[np.float64]:
    """Return (draws, G, G) similarity between random disjoint sets of a dense layer's live features, as a null.

    Compare with it by ``stats.null_p(mean_between(observed), mean_between(null), side)``. That p compares one network
    with the splits of another. The training seed stays the unit, so test the differences over seeds.

    Args:
        dense: moments of the dense layer.
        sizes: number of features that vary in each group of the grouped layer.
        measure: as in ``between_groups``.
        draws: number of splits.
        seed: seed of the splits.

    Raises:
        ValueError: too few features of the dense layer vary, or as the measure.
    """
    living = np.flatnonzero(dense.alive)
    if min(sizes) < 1 or sum(sizes) > living.size:
        raise ValueError(f"groups of {list(sizes)} features cannot be drawn from {living.size} that vary")
    template = np.full(living.size, -1)
    template[: sum(sizes)] = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.full((draws, len(dense.covariance)), -1)
    labels[:, living] = permuted_labels(template, draws, seed)
    return np.stack([between_groups(dense, row, measure) for row in labels])


def _living(of: Moments, columns: Columns) -> Columns:
    living = columns[of.alive[columns]]
    if living.size == 0:
        raise ValueError(f"none of {len(columns)} features varies: there is nothing to compare")
    return living


def _normalised(hsic: NDArray[np.float64], first: Columns, second: Columns) -> float:
    cross, xx, yy = (hsic[np.ix_(a, b)].sum() for a, b in ((first, second), (first, first), (second, second)))
    return float(cross / np.sqrt(xx * yy))


def _whitening(of: Moments, columns: Columns) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (P, rank) that whitens the standardised features, and their correlations (P, P)."""
    key = columns.tobytes()
    if key not in of.whitenings:
        corr = correlation_matrix(of.covariance[np.ix_(columns, columns)])
        variance, direction = np.linalg.eigh(corr)
        kept = variance > RANK_TOLERANCE * variance[-1]
        of.whitenings[key] = direction[:, kept] / np.sqrt(variance[kept]), corr
    return of.whitenings[key]
