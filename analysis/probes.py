"""Linear probes of hue, orientation, frequency and class from each group of a layer.

Legend: N images, C channels, H W space, D dimensions of a target, P draws.

A probe predicts a property of the image from the responses of a group, averaged over space. A larger group predicts
better, and every group predicts each target to some degree. So a group is special only if its score exceeds those of
random sets of as many filters.

Probe the input of the next layer: ``collect(model, batches, {Input("conv2"): PooledResponses()})``. Do not probe the
output of a convolution before its activation: its mean over space depends on the mean of its input alone, so that of a
filter for an orientation is zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import RidgeClassifierCV, RidgeCV
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from analysis.stats import null_p

FOLDS = 5
PENALTIES = np.logspace(0, 4, 5)  # of ridge regression; leave-one-out on the fitted images chooses the best
# Below this chroma (of 0 to 1) an image has no hue, below this coherence (of 0 to 1) no orientation.
LEAST_CHROMA = 1e-3
LEAST_COHERENCE = 1e-3


class PooledResponses:
    """Responses averaged over space, one row per image."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []

    def add(self, x_NCHW: Tensor) -> None:
        """Add the responses of one batch."""
        x = x_NCHW.cpu() if x_NCHW.device.type == "mps" else x_NCHW  # MPS has no float64
        self._rows.append(x.detach().flatten(2).double().mean(2).cpu())

    @property
    def features(self) -> NDArray[np.float64]:
        """Pooled responses (N, C).

        Raises:
            ValueError: no responses.
        """
        if not self._rows:
            raise ValueError("no responses were collected")
        return torch.cat(self._rows).numpy()


def image_targets(batches: Iterable[Tensor]) -> dict[str, NDArray[np.float64]]:
    """Return the targets of the probes, properties of images, each (N, D), in one pass over the images.

    - ``hue``: (cos, sin) of the hue angle of the mean colour in the plane off the grey axis; red is 0, green 120°.
    - ``chroma``: mean over pixels of the distance from the grey axis, R − (G + B)/2 and √3 (G − B)/2; 1 for pure red.
    - ``orientation``: (cos 2θ, sin 2θ), where θ is the direction in which luminance changes most, 0 for vertical edges:
      the first eigenvector of the structure tensor (Bigün & Granlund 1987).
    - ``frequency``: centroid of the power spectrum of luminance less its mean, Hann window, in cycles per pixel.

    The row of an image is NaN if it has no hue (grey), no orientation (isotropic) or no frequency (blank).

    Args:
        batches: RGB images (N, 3, H, W) of 0 to 1, not normalised, of 3 × 3 pixels at least.

    Raises:
        ValueError: no image, or not such images.
    """
    parts: dict[str, list[Tensor]] = {"hue": [], "chroma": [], "orientation": [], "frequency": []}
    for x in batches:
        if x.dim() != 4 or x.shape[1] != 3 or min(x.shape[2:]) < 3:
            raise ValueError(f"images of shape {tuple(x.shape)}: must be RGB, (N, 3, H, W), 3 × 3 pixels at least")
        if x.numel() and not 0 <= float(x.min()) <= float(x.max()) <= 1:
            raise ValueError(f"images of {float(x.min()):.3g} to {float(x.max()):.3g}: must be 0 to 1, not normalised")
        rgb = x.detach().cpu().double()
        red, green, blue = rgb.unbind(1)
        opponent = torch.stack([red - (green + blue) / 2, 3**0.5 / 2 * (green - blue)], 1)
        parts["chroma"].append(opponent.norm(dim=1).mean((1, 2))[:, None])
        parts["hue"].append(_direction(opponent.mean((2, 3)), LEAST_CHROMA))
        luminance = rgb.mean(1)
        parts["orientation"].append(_orientation(luminance))
        parts["frequency"].append(_frequency(luminance))
    if not parts["hue"]:
        raise ValueError("no image to take targets from")
    return {name: torch.cat(rows).numpy() for name, rows in parts.items()}


@dataclass(frozen=True)
class GroupProbe:
    """Score of one group for one target, and the scores of random sets of as many filters.

    Attributes:
        group: label of the group.
        target: name of the property.
        metric: "R²" or "balanced accuracy", on images that the probe was not fitted to.
        score: score of the group.
        chance: score of a guess: 0 for R², 1 / classes for balanced accuracy.
        filters: number of filters of the group.
        dead: number of its filters that never vary.
        null: (P,) scores of the random sets.
        p: two-sided p of the score against the random sets of this network; None without draws.
        note: limits of the result, in plain words; empty without any.
    """

    group: int
    target: str
    metric: str
    score: float
    chance: float
    filters: int
    dead: int
    null: NDArray[np.float64]
    p: float | None
    note: str = ""

    @property
    def excess(self) -> float:
        """Score − mean of the null; NaN without draws."""
        return self.score - float(self.null.mean()) if self.null.size else float("nan")


def probe_score(features_NC: ArrayLike, target: ArrayLike, seed: int = 0) -> float:
    """Return the score of a linear probe of a target, on images that it was not fitted to (5-fold cross-validation).

    Features are standardised. The ridge penalty is chosen within the images that the probe is fitted to. The score of
    a quantity is R², 1 − Σ (y − ŷ)² / Σ (y − ȳ)² over all dimensions together; it is below 0 if the mean predicts
    better. The score of classes is the balanced accuracy, in which every class has the same weight.

    Args:
        features_NC: responses, averaged over space.
        target: (N,) whole numbers for classes; or (N,) or (N, D) quantities, circular ones as cosine and sine.
            Images whose target is NaN are left out.
        seed: seed of the folds; the same for all probes that are compared.

    Raises:
        ValueError: shapes that do not fit, fewer images than folds, a target that never varies, or a class of fewer
            images than folds.
    """
    x, y = np.asarray(features_NC, dtype=np.float64), np.asarray(target)
    if x.ndim != 2 or not x.shape[1] or len(x) != len(y):
        raise ValueError(f"responses of shape {x.shape} and a target of shape {y.shape} do not fit")
    x, y = _known(x, y)
    if len(y) < FOLDS:
        raise ValueError(f"{len(y)} images with a target: a probe needs {FOLDS} at least")
    if _is_class(y):
        classes, images = np.unique(y, return_counts=True)
        if len(classes) < 2 or images.min() < FOLDS:
            rare = dict(zip(classes.tolist(), images.tolist(), strict=True))
            raise ValueError(f"images by class {rare}: a probe needs two classes, and {FOLDS} images of each")
        probe = make_pipeline(StandardScaler(), RidgeClassifierCV(PENALTIES, class_weight="balanced"))
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
        return float(balanced_accuracy_score(y, cross_val_predict(probe, x, y, cv=folds)))
    y = y.reshape(len(y), -1)
    spread = ((y - y.mean(0)) ** 2).sum()
    if spread <= 1e-20 * (y**2).sum():
        raise ValueError(f"the target is the same for all {len(y)} images: there is nothing to predict")
    folds = KFold(FOLDS, shuffle=True, random_state=seed)
    predicted = np.asarray(cross_val_predict(make_pipeline(StandardScaler(), RidgeCV(PENALTIES)), x, y, cv=folds))
    return float(1 - ((y - predicted.reshape(y.shape)) ** 2).sum() / spread)


def group_probes(
    features_NC: ArrayLike,
    labels_C: ArrayLike,
    targets: Mapping[str, ArrayLike],
    null_features: ArrayLike | None = None,
    draws: int = 50,
    seed: int = 0,
) -> list[GroupProbe]:
    """Probe every group for every target, and random sets of as many filters.

    Args:
        features_NC: responses of the layer.
        labels_C: group of each filter; negative if it belongs to none.
        targets: targets by name, in the form of ``probe_score``: those of ``image_targets``, and the classes.
        null_features: responses of a dense layer to the same images, of which the random sets are drawn; by default
            the responses of this layer, of all its groups.
        draws: number of random sets for each size of group and each target.
        seed: seed of the draws and of the folds.

    Raises:
        ValueError: the labels do not fit; the null has fewer filters than a group; or as ``probe_score``.
    """
    features, labels = np.asarray(features_NC, dtype=np.float64), np.asarray(labels_C, dtype=np.int64)
    if features.ndim != 2 or labels.shape != features.shape[1:]:
        raise ValueError(f"labels of shape {labels.shape} do not fit responses of shape {features.shape}")
    source = features if null_features is None else np.asarray(null_features, dtype=np.float64)
    rng, names = np.random.default_rng(seed), np.unique(labels[labels >= 0])
    sizes = {int((labels == name).sum()) for name in names}
    if source.ndim != 2 or len(source) != len(features) or source.shape[1] < max(sizes, default=0):
        raise ValueError(f"sets of {max(sizes, default=0)} filters cannot be drawn from responses of {source.shape}")
    sets = {size: [rng.choice(source.shape[1], size, replace=False) for _ in range(draws)] for size in sorted(sizes)}
    probes = []
    for target, values in targets.items():
        y = np.asarray(values)
        nulls = {size: np.array([probe_score(source[:, chosen], y, seed) for chosen in sets[size]]) for size in sets}
        for name in names:
            own = features[:, labels == name]
            score, null = probe_score(own, y, seed), nulls[own.shape[1]]
            p = null_p(score, null, "two-sided") if null.size else None
            known = _known(own, y)[1]
            metric, chance = ("balanced accuracy", 1 / len(np.unique(known))) if _is_class(y) else ("R²", 0.0)
            dead = int((np.ptp(own, axis=0) == 0).sum())
            note = _note(len(known), len(y), own.shape[1], source.shape[1])
            probes.append(GroupProbe(int(name), target, metric, score, chance, own.shape[1], dead, null, p, note))
    return probes


def _note(known: int, images: int, filters: int, all_filters: int) -> str:
    notes = [
        f"{images - known} of {images} images have no such target" if known < images else "",
        f"{filters} filters and {known} images: the probe is mostly its penalty" if filters >= known else "",
        "the group is all there is to draw from: its null is itself" if filters == all_filters else "",
    ]
    return "; ".join(filter(None, notes))


def _is_class(target: NDArray) -> bool:
    return target.ndim == 1 and target.dtype.kind in "iub"


def _known(features: NDArray[np.float64], target: NDArray) -> tuple[NDArray[np.float64], NDArray]:
    if _is_class(target):
        return features, target
    rows = np.isfinite(np.asarray(target, dtype=np.float64).reshape(len(target), -1)).all(1)
    return features[rows], target[rows]


def _direction(vector_N2: Tensor, least: float) -> Tensor:
    """Return unit vectors; NaN where the length is below ``least``."""
    length = vector_N2.norm(dim=1, keepdim=True)
    return torch.where(length >= least, vector_N2 / length, torch.nan)


def _orientation(luminance_NHW: Tensor) -> Tensor:
    """Return (cos 2θ, sin 2θ), θ the angle of the structure tensor's first eigenvector, by central differences."""
    down, along = (
        (luminance_NHW[:, 2:, 1:-1] - luminance_NHW[:, :-2, 1:-1]),
        (luminance_NHW[:, 1:-1, 2:] - luminance_NHW[:, 1:-1, :-2]),
    )
    doubled = torch.stack([(along**2 - down**2).mean((1, 2)), (2 * along * down).mean((1, 2))], 1)
    energy = (along**2 + down**2).mean((1, 2))[:, None]
    return _direction(torch.where(energy > 1e-12, doubled / energy, 0.0), LEAST_COHERENCE)


def _frequency(luminance_NHW: Tensor) -> Tensor:
    height, width = luminance_NHW.shape[1:]
    window = torch.outer(*(torch.hann_window(side, periodic=True, dtype=torch.float64) for side in (height, width)))
    mean = (luminance_NHW * window).sum((1, 2), keepdim=True) / window.sum()
    power = torch.fft.fft2((luminance_NHW - mean) * window).abs() ** 2
    down, along = (torch.fft.fftfreq(side, dtype=torch.float64) for side in (height, width))
    radius = torch.hypot(down[:, None], along[None])
    total = power.sum((1, 2))
    return torch.where(total > 1e-12, (power * radius).sum((1, 2)) / total, torch.nan)[:, None]
