"""What is a group needed for? Silence what each group of a grouped convolution reads; colour images, and grey ones."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from analysis.lesion import Lesion, lesions
from analysis.separation import separation
from analysis.stats import permuted_labels
from experiments.measure.groups import first_read_apart, reading_grouping
from experiments.measure.images import Shown
from experiments.measure.table import Rows
from gconv.wiring import LayerWiring


def measure_lesions(
    rows: Rows,
    model: nn.Module,
    wiring: dict[str, LayerWiring],
    shown: Shown,
    colours: tuple[NDArray | None, NDArray | None],
    draws: int,
    permutations: int,
) -> dict[str, np.ndarray]:
    """Silence the groups that read the first layer whose filters are read by several.

    Args:
        rows: where the drops of accuracy go: ``lesion_<zero|mean>_group_<g>_on_<colour|grey>``, and their null, as many
            filters of the layer whatever their group. Zero cuts the group off; the mean leaves what comes after it in
            the range that it knows.
        model: trained.
        wiring: of the model.
        shown: images, shown in colour and in grey, even where the network was trained on grey ones: it is the control.
        colours: colour index of the first layer's filters, and which of them are learned; they tell the colour group
            from the grey one.
        draws: of the null.
        permutations: of the labels, to tell whether the groups split by colour: ``lesion_interaction`` is 0 where they
            do not. A group may have a little more colour than another by chance, or because it has grown less, and that
            little is missed more when the group is silenced as a whole. ``lesion_interaction_any_split`` is not set to
            0: networks trained on grey images do not split, and show how much that little is missed.

    Returns:
        Fall of the accuracy of each class, (G, classes).
    """
    apart = first_read_apart(wiring)
    if apart is None:
        return {}
    layer, reader = apart
    colour, grey = list(shown.in_colour().labelled()), list(shown.grey().labelled())
    source = _feeding_module(model, reader, colour[0][0][:2])
    labels = reading_grouping(wiring[layer])
    if source is None:
        rows.note("lesion", f"no single module puts out what {reader} reads", layer)
        return {}
    arrays: dict[str, np.ndarray] = {}
    for replacement in ("zero", "mean"):
        found = lesions(model, source, labels, colour, grey, replacement, draws)
        for lesion in found:
            name = f"lesion_{replacement}_group_{lesion.group + 1}"
            rows.add(f"{name}_on_colour", lesion.colour_drop, "fraction", layer)
            rows.add(f"{name}_on_grey", lesion.grey_drop, "fraction", layer)
            if draws:
                rows.add(f"{name}_on_colour", lesion.null_colour_drop.mean(), "fraction", layer, "random sets")
                rows.add(f"{name}_on_grey", lesion.null_grey_drop.mean(), "fraction", layer, "random sets")
        arrays[f"lesion {replacement} classes"] = np.stack([lesion.class_drop for lesion in found])
        means = _mean_colours(labels, *colours) if layer == next(iter(wiring)) else {}
        index, learned = colours
        if replacement == "mean" and len(means) > 1 and index is not None:
            by_group = {lesion.group: lesion for lesion in found}
            extremes = {"colour": max(means, key=means.__getitem__), "grey": min(means, key=means.__getitem__)}
            for kind, group in extremes.items():
                rows.add(f"lesion_{kind}_group_on_colour", by_group[group].colour_drop, "fraction")
                rows.add(f"lesion_{kind}_group_on_grey", by_group[group].grey_drop, "fraction")
            interaction = _interaction(found, means)
            split = separation(index, labels, learned, permutations).is_split
            rows.add("lesion_interaction", interaction if split else 0.0, "fraction")
            rows.add("lesion_interaction_any_split", interaction, "fraction")
            chance, chance_any = [], []
            for random_labels in permuted_labels(np.asarray(labels), draws, 0) if draws else ():
                means = _mean_colours(random_labels.tolist(), *colours)
                if len(means) > 1:
                    of_draw = lesions(model, source, random_labels, colour, grey, replacement, 0)
                    chance_any.append(_interaction(of_draw, means))
                    split = separation(index, random_labels, learned, permutations).is_split
                    chance.append(chance_any[-1] if split else 0.0)
            if chance:
                rows.add("lesion_interaction", float(np.mean(chance)), "fraction", "", "arbitrary partition")
                rows.add(
                    "lesion_interaction_any_split", float(np.mean(chance_any)), "fraction", "", "arbitrary partition"
                )
    return arrays


def _interaction(found: Sequence[Lesion], means: dict[int, float]) -> float:
    """How much more the colour group is missed on colour than on grey images, less the same of the grey group.

    The colour group is that of the largest mean colour index, the grey group that of the smallest.
    """
    by_group = {lesion.group: lesion for lesion in found}
    colour, grey = (by_group[extreme(means, key=means.__getitem__)] for extreme in (max, min))
    return colour.interaction - grey.interaction


def _mean_colours(labels: list[int], index: NDArray | None, learned: NDArray | None) -> dict[int, float]:
    """Mean colour index of the learned filters that each group reads."""
    if index is None or learned is None:
        return {}
    group = np.asarray(labels)
    return {
        int(g): float(index[(group == g) & learned].mean()) for g in np.unique(group) if ((group == g) & learned).any()
    }


def _feeding_module(model: nn.Module, reader: str, images: Tensor) -> str | None:
    """The module that puts out the very tensor that ``reader`` reads; None if it comes of an operation without one."""
    outputs: list[tuple[str, Any]] = []
    found: list[str | None] = []

    def arrived(_module: nn.Module, inputs: tuple) -> None:
        found.append(next((name for name, y in reversed(outputs) if y is inputs[0]), None))

    with ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            if name == reader:
                hooks.callback(module.register_forward_pre_hook(arrived).remove)
            elif name:

                def keep(_module: nn.Module, _inputs: tuple, y: Any, name: str = name) -> None:
                    outputs.append((name, y))

                hooks.callback(module.register_forward_hook(keep).remove)
        training = model.training
        model.eval()(images)
        model.train(training)
    return found[0] if found else None
