"""Lesions: the accuracy that a network loses without the filters that one group reads, on colour and grey images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from analysis.evaluation_mode import evaluating
from analysis.lesion import Lesion, lesions
from analysis.nulls import ARBITRARY_PARTITION, RANDOM_SETS
from analysis.separation import separation
from analysis.stats import permuted_labels
from experiments.measure.context import MeasureContext
from experiments.measure.first_layer import FirstFilters, first_filters
from experiments.measure.groupings import first_split_layer, reader_groups
from experiments.measure.table import Array, Item, Note, Value

Batches = list[tuple[Tensor, Tensor]]  # inputs and labels


def measure_lesions(context: MeasureContext) -> Iterator[Item]:
    """Yield the fall of the accuracy without each group that reads the first layer whose filters several groups read.

    The measures are ``lesion_<zero|mean>_group_<g>_on_<colour|grey>``, g from 1; their null is as many filters of the
    layer from all groups. Zero cuts the group off; the mean keeps later layers in the range that they know. Colour and
    grey images are measured even where the network was trained on grey ones: it is the control. The array is the fall
    of the accuracy of each class, (G, classes). Nothing without ``options.lesion_images``.
    """
    options, split = context.options, first_split_layer(context.wiring)
    if not options.lesion_images or not context.has_classes or split is None:
        return
    layer, reader = split
    images = context.images.spaced(options.lesion_images)
    colour, grey = list(images.in_colour().labelled()), list(images.grey().labelled())
    source = _feeding_module(context.network, reader, colour[0][0][:2])
    labels = reader_groups(context.wiring[layer])
    if source is None:
        yield Note("lesion", f"no single module puts out what {reader} reads", layer)
        return
    first = first_filters(context) if layer == next(iter(context.wiring)) else None
    for replacement in ("zero", "mean"):
        lesioned = Lesioned(context.network, source, colour, grey, replacement)
        falls = lesioned.falls(labels, options.draws)
        for fall in falls:
            name = f"lesion_{replacement}_group_{fall.group + 1}"
            yield Value(f"{name}_on_colour", fall.colour_drop, "fraction", layer)
            yield Value(f"{name}_on_grey", fall.grey_drop, "fraction", layer)
            if options.draws:
                yield Value(f"{name}_on_colour", fall.null_colour_drop.mean(), "fraction", layer, RANDOM_SETS)
                yield Value(f"{name}_on_grey", fall.null_grey_drop.mean(), "fraction", layer, RANDOM_SETS)
        yield Array(f"lesion {replacement} classes", np.stack([fall.class_drop for fall in falls]))
        if replacement == "mean" and first is not None:
            yield from _interactions(lesioned, falls, labels, first, options.draws, options.permutations)


@dataclass(frozen=True, eq=False)
class Lesioned:
    """A network whose filters are silenced.

    Attributes:
        network: trained.
        source: module whose output is silenced.
        colour, grey: batches of the same images, in colour and in grey.
        replacement: value of a silenced filter.
    """

    network: nn.Module
    source: str
    colour: Batches
    grey: Batches
    replacement: Literal["zero", "mean"]

    def falls(self, labels: Sequence[int] | NDArray, draws: int) -> list[Lesion]:
        """Return the fall of the accuracy without each group, and without ``draws`` random sets of as many filters."""
        return lesions(self.network, self.source, labels, self.colour, self.grey, self.replacement, draws)


def _interactions(
    lesioned: Lesioned,
    falls: Sequence[Lesion],
    labels: Sequence[int],
    first: FirstFilters,
    draws: int,
    permutations: int,
) -> Iterator[Item]:
    """Yield the falls without the colour and the grey group, and their interaction with the colour of the images.

    ``lesion_interaction`` is 0 where the groups do not split by colour. A group may have a little more colour than
    another by chance, or because it has grown less, and that little is missed more when the group is silenced as a
    whole. ``lesion_interaction_any_split`` is not set to 0: networks trained on grey images do not split, and show how
    much that little is missed.
    """
    means = _mean_colours(labels, first)
    if len(means) < 2:
        return
    by_group = {fall.group: fall for fall in falls}
    extremes = {"colour": max(means, key=means.__getitem__), "grey": min(means, key=means.__getitem__)}
    for kind, group in extremes.items():
        yield Value(f"lesion_{kind}_group_on_colour", by_group[group].colour_drop, "fraction")
        yield Value(f"lesion_{kind}_group_on_grey", by_group[group].grey_drop, "fraction")
    interaction = _interaction(falls, means)
    is_split = separation(first.colour_index, labels, first.learned, permutations).is_split
    yield Value("lesion_interaction", interaction if is_split else 0.0, "fraction")
    yield Value("lesion_interaction_any_split", interaction, "fraction")
    chance, chance_any = [], []
    for random_labels in permuted_labels(np.asarray(labels), draws, 0) if draws else ():
        means = _mean_colours(random_labels.tolist(), first)
        if len(means) > 1:
            chance_any.append(_interaction(lesioned.falls(random_labels, 0), means))
            is_split = separation(first.colour_index, random_labels, first.learned, permutations).is_split
            chance.append(chance_any[-1] if is_split else 0.0)
    if chance:
        for measure, drawn in (("lesion_interaction", chance), ("lesion_interaction_any_split", chance_any)):
            yield Value(measure, float(np.mean(drawn)), "fraction", "", ARBITRARY_PARTITION)


def _interaction(falls: Sequence[Lesion], means: dict[int, float]) -> float:
    """Return how much more the colour group is missed on colour than on grey images, less the same of the grey group.

    The colour group has the largest mean colour index, the grey group the smallest.
    """
    by_group = {fall.group: fall for fall in falls}
    colour, grey = (by_group[extreme(means, key=means.__getitem__)] for extreme in (max, min))
    return colour.interaction - grey.interaction


def _mean_colours(labels: Sequence[int], first: FirstFilters) -> dict[int, float]:
    """Return the mean colour index of the learned filters that each group reads; groups without any are left out."""
    group = np.asarray(labels)
    members = {int(g): (group == g) & first.learned for g in np.unique(group)}
    return {g: float(first.colour_index[member].mean()) for g, member in members.items() if member.any()}


def _feeding_module(model: nn.Module, reader: str, images: Tensor) -> str | None:
    """Return the module whose output is the very tensor that ``reader`` reads; None if no module's output is."""
    outputs: list[tuple[str, Any]] = []
    feeding: list[str | None] = []

    def arrived(_module: nn.Module, inputs: tuple) -> None:
        feeding.append(next((name for name, y in reversed(outputs) if y is inputs[0]), None))

    with ExitStack() as hooks, evaluating(model), torch.no_grad():
        for name, module in model.named_modules():
            if name == reader:
                hooks.callback(module.register_forward_pre_hook(arrived).remove)
            elif name:

                def keep(_module: nn.Module, _inputs: tuple, y: Any, name: str = name) -> None:
                    outputs.append((name, y))

                hooks.callback(module.register_forward_hook(keep).remove)
        model(images)
    return feeding[0] if feeding else None
