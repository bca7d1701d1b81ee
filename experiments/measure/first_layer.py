"""Colour, frequency and orientation of the first layer's filters, compared between the groups that read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from analysis import colour, frequency, latent
from analysis.evaluation_mode import evaluating
from analysis.nulls import CONTIGUOUS_PARTITION, LABELS_PERMUTED, SPECTRAL_PARTITION, narrowed
from analysis.separation import mean_auc, mean_range, separation
from analysis.stats import permuted_labels
from experiments.measure.context import MeasureContext
from experiments.measure.groupings import output_groups
from experiments.measure.table import Array, Item, Note, Value
from gconv.partition import Partition

CROPS = 20  # image crops to which a filter responds most, for its colour selectivity


@dataclass(frozen=True, eq=False)
class FirstFilters:
    """The filters that read RGB. O filters, K kernel.

    Attributes:
        layer: name of the first convolution.
        trained, initial: (O, 3, K, K) weights after and before training.
        learned_part: (O, 3, K, K) learned part of each filter; the trained filter where the initialisation is unknown.
        energy: (O,) share of the energy that the learned part has; None where the initialisation is unknown.
        learned: (O,) True if a filter counts as learned.
        colour_index: (O,) colour index of the learned part.
    """

    layer: str
    trained: NDArray
    initial: NDArray
    learned_part: NDArray
    energy: NDArray | None
    learned: NDArray
    colour_index: NDArray


def first_filters(context: MeasureContext) -> FirstFilters | None:
    """Return the filters of the first convolution; None if it does not read RGB in one group.

    Rule, fixed beforehand: a filter counts as learned if its learned part (``colour.learned_part``) is no noise
    (``colour.learned``) and has at least half of its energy (``colour.LEARNED_ENERGY``). Where the initialisation is
    not known, the filter is taken as it is.
    """
    layer = next(iter(context.wiring))
    trained, initial = (_rgb_weight(model, layer) for model in (context.network, context.untrained))
    if trained is None or initial is None:
        return None
    filters, learned, energy = trained, colour.learned(trained), None
    if context.initialisation_known:
        part = colour.learned_part(trained, initial)
        filters, energy = part.filters, part.energy
        learned = colour.learned(filters) & (energy >= colour.LEARNED_ENERGY)
    return FirstFilters(layer, trained, initial, filters, energy, learned, colour.colour_index(filters))


def measure_first_layer(context: MeasureContext) -> Iterator[Item]:
    """Yield colour and spatial tuning of the filters that read RGB, and how far they separate the reading groups."""
    first = first_filters(context)
    layer, permutations = next(iter(context.wiring)), context.options.permutations
    if first is None:
        yield Note("colour_index", "the first convolution does not read RGB in one group", layer)
        return
    if first.energy is None:
        yield Note("learned_energy", "the initialisation is not known: filters are taken as they are", layer)
    elif np.isfinite(first.energy).any():
        yield Value("learned_energy", float(np.nanmean(first.energy)), "fraction", layer)
    tuned, hue = frequency.tuning(first.learned_part), colour.first_colour(first.learned_part)
    selectivity, note = _colour_selectivity(context, layer)
    if note:
        yield Note("colour_selectivity", note, layer)
    learned, labels = first.learned, output_groups(context.wiring[layer]).get("read")
    yield Value("learned_filters", learned.mean(), "fraction", layer)
    yield Value("smoothness", float(np.nanmean(colour.smoothness(first.trained))), "fraction", layer)
    if context.initialisation_known:
        change = colour.change_from_initialisation(first.trained, first.initial)
        yield Value("correlation_with_initialisation", float(np.nanmean(change.correlation)), "r", layer)
    angle, explained = (np.where(hue.coloured, values, np.nan) for values in (hue.angle, hue.explained))
    yield Array("filters", first.trained)
    yield Array("colour_index", first.colour_index)
    yield Array("learned", learned)
    yield Array("frequency", tuned.centroid)
    yield Array("first_colour_angle", angle)
    yield Array("selectivity", selectivity)
    means = {
        "colour_index": (first.colour_index, "fraction"),
        "first_colour_explained": (explained, "fraction"),
        "frequency_centroid": (tuned.centroid, "cycles per pixel"),
        "orientation_selectivity": (tuned.selectivity, "fraction"),
        "colour_selectivity": (selectivity, "fraction"),
    }
    for measure, (values, unit) in means.items():
        if np.isfinite(values[learned]).any():
            yield Value(measure, np.nanmean(values[learned]), unit, layer)
        else:
            yield Note(measure, "of no learned filter", layer)
    if labels is not None:
        groups = np.asarray(labels)
        yield Array("filter_groups", groups)
        attributes = {
            "colour": first.colour_index,
            "frequency": tuned.centroid,
            "orientation": tuned.selectivity,
            "selectivity": selectivity,
        }
        for name, values in attributes.items():
            yield from _separation(name, values, groups, learned, layer, permutations)
        yield from _frequency_within_colour(first, tuned.centroid, groups, permutations)
        yield from _specialisation(first, groups, permutations)
    else:
        halves = np.asarray(Partition.of("~2", len(learned)).labels)
        yield from _separation("colour", first.colour_index, halves, learned, layer, permutations, CONTIGUOUS_PARTITION)
    yield from _latent_partition(context, first, tuned.centroid)


def _rgb_weight(model: nn.Module, layer: str) -> NDArray | None:
    """Return the weight (O, 3, K, K) of a layer; None if it does not read RGB in one group."""
    weight = model.get_submodule(layer).weight
    if not isinstance(weight, Tensor) or weight.dim() != 4 or weight.shape[1] != 3:
        return None
    return weight.detach().float().cpu().numpy()


@torch.no_grad()
def _colour_selectivity(context: MeasureContext, layer: str) -> tuple[NDArray, str]:
    """Return the colour selectivity index (O,) of each first-layer filter after its activation, and a note on it."""
    images = context.images
    chain = _filterwise(context.network, layer, next(images.spaced(1).test()))
    respond = nn.Sequential(*chain)
    filters = len(context.network.get_submodule(layer).weight)  # type: ignore[arg-type]
    try:
        field = colour.receptive_field(chain)
        top = colour.TopResponses(CROPS)
        with evaluating(respond):
            for x in images.test():
                top.add(respond(x))
            selectivity = colour.colour_selectivity(
                lambda x: respond(images.normalised(x)),
                lambda places: images.plain_at(torch.from_numpy(places)),
                top.top,
                field,
                images.batch,
            )
    except ValueError as error:
        return np.full(filters, np.nan), str(error)
    silent = f"{selectivity.silent} of {filters} filters respond to no crop" if selectivity.silent else ""
    return selectivity.index, silent


@torch.no_grad()
def _filterwise(model: nn.Module, layer: str, x_NCHW: Tensor) -> list[nn.Module]:
    """Return the layer and the modules after it that act on each filter and pixel alone, in the order they run."""
    ran: list[tuple[nn.Module, Any, Any]] = []
    leaves = [module for module in model.modules() if not list(module.children())]
    # A later module may overwrite the tensor of an earlier one but never replaces it: identity shows what follows.
    hooks = [leaf.register_forward_hook(lambda leaf, given, y: ran.append((leaf, given[0], y))) for leaf in leaves]
    try:
        with evaluating(model):
            model(x_NCHW)
    finally:
        for hook in hooks:
            hook.remove()
    chain, after = [], None
    for leaf, given, y in ran:
        if leaf is model.get_submodule(layer):
            chain, after = [leaf], y
        elif after is not None and given is after and isinstance(leaf, colour.UNMOVED):
            chain.append(leaf)
            after = y
    return chain


def _separation(
    name: str,
    values: NDArray,
    labels: NDArray,
    learned: NDArray,
    layer: str,
    permutations: int,
    partition: str = "",
) -> Iterator[Item]:
    """Yield how far an attribute separates the groups, and its means under permuted labels.

    ``partition`` names groups that the layer was not trained with. A colour split (``colour_split``, 0 or 1) is an area
    under the curve with p < .05 and a difference of the mean index of at least .1.
    """
    separated = separation(values, labels, learned, permutations)
    permuted = narrowed(partition, LABELS_PERMUTED)
    groups = str(len(set(labels[labels >= 0].tolist()))) if partition else ""
    measures = {
        f"{name}_difference": separated.difference,
        f"separation_{name}_auc": separated.auc,
        f"separation_{name}_information": separated.information,
    }
    for measure, inference in measures.items():
        if not np.isfinite(inference.value):
            yield Note(measure, inference.note, layer)
            continue
        yield Value(measure, inference.value, "", layer, partition, groups)
        if inference.p is not None:
            yield Value(f"{measure}_p", inference.p, "p", layer, permuted, groups)
    if np.isfinite(separated.auc.value):
        kept = learned & np.isfinite(values)
        draws = permuted_labels(labels[kept], permutations, 0)
        auc, difference = (float(statistic(values[kept], draws).mean()) for statistic in (mean_auc, mean_range))
        yield Value(f"separation_{name}_auc", auc, "", layer, permuted, groups)
        yield Value(f"{name}_difference", difference, "", layer, permuted, groups)
        if name == "colour" and separated.auc.p is not None:
            yield Value("colour_split", float(separated.is_split), "", layer, partition, groups)


def _frequency_within_colour(
    first: FirstFilters, centroid: NDArray, labels: NDArray, permutations: int
) -> Iterator[Item]:
    """Yield how far spatial frequency separates the grey groups, and the colour groups (Voss et al. 2021).

    Groups are ranked by their mean colour index, and cut into a grey and a colour half. The area under the curve is
    that between the groups of each half, mean of both; labels are permuted inside each half.
    """
    measure, names = "separation_frequency_auc_within_colour", np.unique(labels)
    if len(names) < 4:
        return
    index = first.colour_index
    kept = first.learned & np.isfinite(index) & np.isfinite(centroid)
    present = [name for name in names if (kept & (labels == name)).any()]
    if len(present) < 4:
        yield Note(measure, "fewer than four groups have a learned filter", first.layer)
        return
    ranked = sorted(present, key=lambda name: index[kept & (labels == name)].mean())
    halves = ranked[: len(ranked) // 2], ranked[-(len(ranked) // 2) :]
    areas, chance = [], []
    for half in halves:
        member = kept & np.isin(labels, half)
        values, group = centroid[member], labels[member]
        areas.append(float(mean_auc(values, group[None])[0]))
        chance.append(float(mean_auc(values, permuted_labels(group, permutations, 0)).mean()))
    yield Value(measure, float(np.mean(areas)), "", first.layer)
    yield Value(measure, float(np.mean(chance)), "", first.layer, LABELS_PERMUTED)


def _specialisation(first: FirstFilters, labels: NDArray, permutations: int) -> Iterator[Item]:
    """Yield the squared shift of the mean colour index of the smallest and of the largest group, without bias.

    In variances of a filter: (mean of the group − mean of the layer)², less its mean under permuted labels, which is
    larger for a small group. 0 on average for random groups of any sizes; may be negative.
    """
    sizes = np.bincount(labels)
    if len(set(sizes.tolist())) == 1:
        return
    kept = first.learned & np.isfinite(first.colour_index)
    values, group = first.colour_index[kept], labels[kept]
    draws = permuted_labels(group, permutations, 0)
    for which, chosen in (("smallest", int(sizes.argmin())), ("largest", int(sizes.argmax()))):
        measure = f"specialisation_{which}_group"
        if not (group == chosen).any():
            yield Note(measure, "no learned filter in this group", first.layer)
            continue
        if np.ptp(values) == 0 or (group == chosen).all():
            yield Note(measure, "random groups do not differ: nothing to compare", first.layer)
            continue
        member = draws == chosen
        by_chance = ((member @ values / member.sum(1) - values.mean()) ** 2).mean()
        shift = (values[group == chosen].mean() - values.mean()) ** 2 - by_chance
        yield Value(measure, shift / values.var(), "variances of a filter", first.layer)


def _latent_partition(context: MeasureContext, first: FirstFilters, centroid: NDArray) -> Iterator[Item]:
    """Yield whether a second layer without groups reads the first in parts that differ in colour (Voss et al. 2021)."""
    layer, learned, permutations = first.layer, first.learned, context.options.permutations
    reader = context.wiring[layer].first_reader()
    weight = None if reader is None else context.network.get_submodule(reader).weight
    if not isinstance(weight, Tensor) or weight.dim() != 4 or weight.shape[1] != len(learned):
        return  # the reader is cut into groups, or reads more than this layer
    try:
        coupling = latent.coupling(weight.detach().float().cpu().numpy())
        factor = latent.factors(coupling, 1).read
        correlations = {
            "latent_colour_correlation": latent.associations(factor, first.colour_index, learned, permutations)[0],
            "latent_frequency_correlation": latent.associations(factor, centroid, learned, permutations)[0],
        }
        _, parts = latent.spectral_groups(coupling, 2)
    except ValueError as error:
        yield Note("latent_colour_correlation", str(error), layer)
        return
    for measure, inference in correlations.items():
        if not np.isfinite(inference.value):
            yield Note(measure, inference.note, layer)
            continue
        chance = _rank_correlation_by_chance(inference.n, permutations)
        yield Value(measure, inference.value, "|r|", layer)
        yield Value(measure, chance, "|r|", layer, LABELS_PERMUTED)
        if inference.p is not None:
            yield Value(f"{measure}_p", inference.p, "p", layer, LABELS_PERMUTED)
    kept = learned & (parts >= 0)
    if len(set(parts[kept].tolist())) > 1:
        yield from _separation("colour", first.colour_index, parts, kept, layer, permutations, SPECTRAL_PARTITION)
    else:
        yield Note("separation_colour_auc", "all learned filters are in one spectral part", layer)


def _rank_correlation_by_chance(count: int, permutations: int) -> float:
    """Return the mean |Spearman r| of two unrelated orders of that many filters."""
    ranks = np.arange(count) - (count - 1) / 2
    shuffled = permuted_labels(np.arange(count), permutations, 0) - (count - 1) / 2
    return float(np.abs(shuffled @ ranks / (ranks @ ranks)).mean())
