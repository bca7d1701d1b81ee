"""Lesions: the accuracy lost when a group is silenced, on colour and on grey images.

Legend: N batch, C channels, H W space, K classes, P draws.

If only one group has some information, the network loses it with the group. So without a group that has specialised in
colour, the accuracy falls more on colour images than on their grey versions. The loss of any filters costs accuracy,
so a group is compared with random sets of as many filters.

Silence the input of the next convolution: the output of an activation or of a normalisation. Do not silence the output
of a convolution before its normalisation, which would turn zero into another value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from analysis.evaluation_mode import evaluating
from analysis.responses import collect_responses
from analysis.stats import null_p

Batches = Iterable[tuple[Tensor, Tensor]]  # images and their classes, in the same order each time
Replacement = Literal["zero", "mean"]


@dataclass(frozen=True)
class Lesion:
    """Fall of the accuracy when one group is silenced. Drops are intact − silenced, in fractions of 1.

    Attributes:
        group: label of the group.
        filters: number of filters that were silenced.
        colour_drop, grey_drop: fall of the accuracy on colour images and on their grey versions.
        class_drop: (K,) fall of the accuracy of each class on colour images; NaN for a class without images.
        null_colour_drop, null_grey_drop: (P,) the same for random sets of as many filters.
    """

    group: int
    filters: int
    colour_drop: float
    grey_drop: float
    class_drop: NDArray[np.float64]
    null_colour_drop: NDArray[np.float64]
    null_grey_drop: NDArray[np.float64]

    @property
    def interaction(self) -> float:
        """Fall on colour images less the fall on grey ones."""
        return self.colour_drop - self.grey_drop

    @property
    def null_interaction(self) -> NDArray[np.float64]:
        """Interaction of random sets of as many filters, (P,)."""
        return self.null_colour_drop - self.null_grey_drop

    @property
    def p(self) -> float | None:
        """Two-sided p of the interaction against that of random sets of filters of this network; None without draws."""
        return null_p(self.interaction, self.null_interaction, "two-sided") if self.null_interaction.size else None


@contextmanager
def silenced(model: nn.Module, layer: str, channels: ArrayLike, replacement: float | Tensor = 0.0) -> Iterator[None]:
    """Hold some output channels of a layer constant while open; the model is unchanged afterwards.

    Args:
        model: any module.
        layer: name of the layer, a module of the model.
        channels: indices of the output channels to silence.
        replacement: constant output of these channels: one value, or one for each channel.

    Raises:
        ValueError: no such layer (the message lists the layers); no such channels; values that do not fit them.
    """
    modules = dict(model.named_modules())
    if layer not in modules:
        raise ValueError(f"no layer {layer!r}; there are: {', '.join(name for name in modules if name)}")
    chosen = torch.as_tensor(np.asarray(channels, dtype=np.int64))
    values = torch.as_tensor(replacement)
    if values.dim() and values.shape != chosen.shape:
        raise ValueError(f"{values.numel()} values cannot replace {chosen.numel()} channels")

    def replace(_module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
        if chosen.numel() and not 0 <= int(chosen.min()) <= int(chosen.max()) < output.shape[1]:
            raise ValueError(f"channels {chosen.tolist()} of {layer!r}: it has 0 to {output.shape[1] - 1}")
        value = values.to(output.device, output.dtype)
        shape = (-1, *[1] * (output.dim() - 2)) if value.dim() else ()
        output = output.clone()
        output[:, chosen.to(output.device)] = value.reshape(shape)
        return output

    handle = modules[layer].register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def class_accuracy(model: nn.Module, batches: Batches) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the correctly classified images of each class (K,), and all images of each class (K,), in evaluation mode.

    Raises:
        ValueError: no image, or a class that the model does not know.
    """
    right, images = (np.zeros(0, dtype=np.int64) for _ in range(2))
    with evaluating(model), torch.no_grad():
        for x, target in batches:
            scores = model(x)
            if not right.size:
                right, images = (np.zeros(scores.shape[1], dtype=np.int64) for _ in range(2))
            truth, predicted = target.cpu().numpy(), scores.argmax(1).cpu().numpy()
            if truth.size and not 0 <= truth.min() <= truth.max() < len(right):
                raise ValueError(f"classes {truth.min()} to {truth.max()}: the model knows 0 to {len(right) - 1}")
            images += np.bincount(truth, minlength=len(right))
            right += np.bincount(truth[truth == predicted], minlength=len(right))
    if not images.sum():
        raise ValueError("an accuracy needs an image")
    return right, images


def lesions(
    model: nn.Module,
    layer: str,
    labels: ArrayLike,
    colour: Batches,
    grey: Batches,
    replacement: Replacement = "zero",
    draws: int = 20,
    seed: int = 0,
) -> list[Lesion]:
    """Silence each group of a layer in turn, and random sets of as many of its filters.

    Args:
        model: any module, on the device of the batches.
        layer: name of the layer whose output channels are silenced.
        labels: (C,) group of each output channel; negative if it belongs to none.
        colour, grey: the same images in colour and in grey, with their classes. Every group and every draw passes
            through them once, so give a list or a loader, not a generator.
        replacement: "zero", or the "mean" of each channel over the images. With the mean, the inputs of later layers
            stay in their usual range.
        draws: number of random sets of filters for each size of group.
        seed: seed of the draws.

    Returns:
        One lesion for each group, in the order of their labels.

    Raises:
        ValueError: batches that can be iterated only once; an unknown layer or replacement; labels that do not fit.
    """
    if replacement not in ("zero", "mean"):
        raise ValueError(f"replacement {replacement!r}: must be zero or mean")
    for name, batches in (("colour", colour), ("grey", grey)):
        if iter(batches) is batches:
            raise ValueError(f"{name} batches that can be iterated only once: give a list or a loader")
    group = np.asarray(labels, dtype=np.int64)
    image_sets = [_ImageSet(model, layer, batches) for batches in (colour, grey)]
    if group.ndim != 1 or len(group) != len(image_sets[0].mean):
        raise ValueError(
            f"labels of shape {group.shape} do not fit the {len(image_sets[0].mean)} channels of {layer!r}"
        )
    if not (image_sets[0].images == image_sets[1].images).all():
        raise ValueError("colour and grey must be the same images: their classes differ")
    rng = np.random.default_rng(seed)

    def drops(channels: NDArray[np.int64]) -> list[NDArray[np.float64]]:
        return [view.lost(channels, replacement) / max(1, view.images.sum()) for view in image_sets]

    nulls: dict[int, NDArray[np.float64]] = {}
    results = []
    for name in np.unique(group[group >= 0]):
        channels = np.flatnonzero(group == name)
        if channels.size not in nulls:
            sets = [rng.choice(len(group), channels.size, replace=False) for _ in range(draws)]
            nulls[channels.size] = np.array([[part.sum() for part in drops(chosen)] for chosen in sets]).reshape(-1, 2)
        lost = drops(channels)
        with np.errstate(invalid="ignore"):
            by_class = lost[0] * image_sets[0].images.sum() / image_sets[0].images
        null = nulls[channels.size]
        results.append(
            Lesion(
                int(name), channels.size, float(lost[0].sum()), float(lost[1].sum()), by_class, null[:, 0], null[:, 1]
            )
        )
    return results


class _ImageSet:
    """Images of one kind: the number that the intact model classifies correctly, and the means of the layer."""

    def __init__(self, model: nn.Module, layer: str, batches: Batches) -> None:
        self._model, self._layer, self._batches = model, layer, batches
        self.mean = collect_responses(model, (x for x, _ in batches), [layer])[layer].mean.float()
        self._right, self.images = class_accuracy(model, batches)

    def lost(self, channels: NDArray[np.int64], replacement: Replacement) -> NDArray[np.int64]:
        """Return how many fewer images of each class are classified correctly (K,)."""
        value = self.mean[torch.from_numpy(channels)] if replacement == "mean" else 0.0
        with silenced(self._model, self._layer, channels, value):
            return self._right - class_accuracy(self._model, self._batches)[0]
