"""Do groups split the first layer by colour, frequency and orientation? And does a dense net do so unasked?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from analysis import colour, frequency, latent
from analysis.separation import mean_auc, mean_range, separation
from analysis.stats import permuted_labels
from experiments.measure.groups import groupings
from experiments.measure.images import Shown
from experiments.measure.table import Rows
from gconv.partition import Partition
from gconv.wiring import LayerWiring

CONTIGUOUS = "contiguous partition"  # halves, in channel order, of a layer that no group reads apart
CROPS = 20  # to which a filter responds most, for its colour selectivity


def measure_first_layer(
    rows: Rows,
    trained: nn.Module,
    untrained: nn.Module,
    wiring: dict[str, LayerWiring],
    shown: Shown,
    permutations: int,
    initial_known: bool = True,
) -> dict[str, np.ndarray]:
    """Colour and spatial tuning of the filters that read RGB, by the group that reads them.

    Rule, fixed beforehand: attributes are those of the learned part of a filter (``colour.learned_part``), and a filter
    counts where that part is no noise (``colour.learned``) and bears half of the energy of the filter at least
    (``colour.LEARNED_ENERGY``). Where the initialisation is not known, the filter is taken as it is.
    """
    layer, first = next(iter(wiring.items()))
    whole, initial = _rgb_filters(trained, layer), _rgb_filters(untrained, layer)
    if whole is None or initial is None:
        rows.note("colour_index", "the first convolution does not read RGB in one group", layer)
        return {}
    filters, learned = whole, colour.learned(whole)
    if initial_known:
        part = colour.learned_part(whole, initial)
        filters, learned = part.filters, colour.learned(part.filters) & (part.energy >= colour.LEARNED_ENERGY)
        if np.isfinite(part.energy).any():
            rows.add("learned_energy", float(np.nanmean(part.energy)), "fraction", layer)
    else:
        rows.note("learned_energy", "the initialisation is not known: filters are taken as they are", layer)
    tuned, hue = frequency.tuning(filters), colour.first_colour(filters)
    attributes = {
        "colour": colour.colour_index(filters),
        "frequency": tuned.centroid,
        "orientation": tuned.selectivity,
        "selectivity": _colour_selectivity(rows, trained, layer, shown),
    }
    rows.add("learned_filters", learned.mean(), "fraction", layer)
    rows.add("smoothness", float(np.nanmean(colour.smoothness(whole))), "fraction", layer)
    change = colour.change_from_initialisation(whole, initial)
    if initial_known:
        rows.add("correlation_with_initialisation", float(np.nanmean(change.correlation)), "r", layer)
    arrays = {"filters": whole, "colour_index": attributes["colour"], "learned": learned}
    arrays |= {"frequency": tuned.centroid, "first_colour_angle": np.where(hue.coloured, hue.angle, np.nan)}
    arrays |= {"selectivity": attributes["selectivity"]}
    means = {
        "colour_index": (attributes["colour"], "fraction"),
        "first_colour_explained": (np.where(hue.coloured, hue.explained, np.nan), "fraction"),
        "frequency_centroid": (tuned.centroid, "cycles per pixel"),
        "orientation_selectivity": (tuned.selectivity, "fraction"),
        "colour_selectivity": (attributes["selectivity"], "fraction"),
    }
    for measure, (values, unit) in means.items():
        if np.isfinite(values[learned]).any():
            rows.add(measure, np.nanmean(values[learned]), unit, layer)
        else:
            rows.note(measure, "of no learned filter", layer)
    labels = groupings(first).get("read")
    if labels is not None:
        arrays["filter_groups"] = np.asarray(labels)
        for name, values in attributes.items():
            _add_separation(rows, name, values, np.asarray(labels), learned, layer, permutations)
        _add_frequency_within_colour(rows, attributes, np.asarray(labels), learned, layer, permutations)
        _add_specialisation(rows, attributes["colour"], np.asarray(labels), learned, layer, permutations)
    else:
        halves = np.asarray(Partition.of("~2", len(whole)).labels)
        _add_separation(rows, "colour", attributes["colour"], halves, learned, layer, permutations, CONTIGUOUS)
    _add_latent_partition(rows, trained, wiring, attributes["colour"], tuned.centroid, learned, permutations)
    return arrays


def _rgb_filters(model: nn.Module, layer: str) -> NDArray | None:
    weight = model.get_submodule(layer).weight
    if not isinstance(weight, Tensor) or weight.dim() != 4 or weight.shape[1] != 3:
        return None
    return weight.detach().float().cpu().numpy()


@torch.no_grad()
def _colour_selectivity(rows: Rows, model: nn.Module, layer: str, shown: Shown) -> NDArray:
    """(O,) colour selectivity index of each filter of the first layer, of what its activation puts out."""
    chain = _filterwise(model, layer, next(shown.few(1).test()))
    respond = nn.Sequential(*chain).eval()
    filters = len(model.get_submodule(layer).weight)  # type: ignore[arg-type]
    try:
        field = colour.receptive_field(chain)
        top = colour.TopResponses(CROPS)
        for x in shown.test():
            top.add(respond(x))
        selectivity = colour.colour_selectivity(
            lambda x: respond(shown.normalised(x)),
            lambda places: shown.plain_at(torch.from_numpy(places)),
            top.top,
            field,
            shown.batch,
        )
    except ValueError as error:
        rows.note("colour_selectivity", str(error), layer)
        return np.full(filters, np.nan)
    if selectivity.silent:
        rows.note("colour_selectivity", f"{selectivity.silent} of {filters} filters respond to no crop", layer)
    return selectivity.index


@torch.no_grad()
def _filterwise(model: nn.Module, layer: str, x_NCHW: Tensor) -> list[nn.Module]:
    """The layer and the modules after it that treat each filter on its own, place by place, in the order they run."""
    ran: list[tuple[nn.Module, Any, Any]] = []
    leaves = [module for module in model.modules() if not list(module.children())]
    # In a later module the tensor of an earlier one may be overwritten, never replaced: identity tells what follows.
    hooks = [leaf.register_forward_hook(lambda leaf, given, y: ran.append((leaf, given[0], y))) for leaf in leaves]
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()(x_NCHW)
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:
            module.training = True
    chain, after = [], None
    for leaf, given, y in ran:
        if leaf is model.get_submodule(layer):
            chain, after = [leaf], y
        elif after is not None and given is after and isinstance(leaf, colour.UNMOVED):
            chain.append(leaf)
            after = y
    return chain


def _add_separation(
    rows: Rows,
    name: str,
    values: NDArray,
    labels: NDArray,
    learned: NDArray,
    layer: str,
    permutations: int,
    partition: str = "",
) -> None:
    """How far an attribute tells the groups apart, and the means of it under permuted labels.

    ``partition`` names groups that the layer was not trained with. A colour split (``colour_split``, 0 or 1) is an area
    under the curve with p < .05 and a difference of the mean index of .1 at least.
    """
    apart = separation(values, labels, learned, permutations)
    permuted = f"{partition}, labels permuted" if partition else "labels permuted"
    groups = str(len(set(labels[labels >= 0].tolist()))) if partition else ""
    measures = {
        f"{name}_difference": apart.difference,
        f"separation_{name}_auc": apart.auc,
        f"separation_{name}_information": apart.information,
    }
    for measure, found in measures.items():
        if not np.isfinite(found.value):
            rows.note(measure, found.note, layer)
            continue
        rows.add(measure, found.value, "", layer, partition, groups)
        if found.p is not None:
            rows.add(f"{measure}_p", found.p, "p", layer, permuted, groups)
    if np.isfinite(apart.auc.value):
        kept = learned & np.isfinite(values)
        draws = permuted_labels(labels[kept], permutations, 0)
        rows.add(f"separation_{name}_auc", float(mean_auc(values[kept], draws).mean()), "", layer, permuted, groups)
        rows.add(f"{name}_difference", float(mean_range(values[kept], draws).mean()), "", layer, permuted, groups)
        if name == "colour" and apart.auc.p is not None:
            rows.add("colour_split", float(apart.is_split), "", layer, partition, groups)


def _add_frequency_within_colour(
    rows: Rows, attributes: dict[str, NDArray], labels: NDArray, learned: NDArray, layer: str, permutations: int
) -> None:
    """Do the groups of the grey half, and those of the colour half, differ in spatial frequency (Voss et al. 2021)?

    Groups are ranked by their mean colour index, and cut into a grey and a colour half. The area under the curve is
    that between the groups of each half, mean of both; labels are permuted inside each half.
    """
    measure, names = "separation_frequency_auc_within_colour", np.unique(labels)
    if len(names) < 4:
        return
    index, centroid = attributes["colour"], attributes["frequency"]
    kept = learned & np.isfinite(index) & np.isfinite(centroid)
    present = [name for name in names if (kept & (labels == name)).any()]
    if len(present) < 4:
        rows.note(measure, "fewer than four groups have a learned filter", layer)
        return
    ranked = sorted(present, key=lambda name: index[kept & (labels == name)].mean())
    halves = ranked[: len(ranked) // 2], ranked[-(len(ranked) // 2) :]
    found, chance = [], []
    for half in halves:
        member = kept & np.isin(labels, half)
        values, group = centroid[member], labels[member]
        found.append(float(mean_auc(values, group[None])[0]))
        chance.append(float(mean_auc(values, permuted_labels(group, permutations, 0)).mean()))
    rows.add(measure, float(np.mean(found)), "", layer)
    rows.add(measure, float(np.mean(chance)), "", layer, "labels permuted")


def _add_specialisation(
    rows: Rows, index: NDArray, labels: NDArray, learned: NDArray, layer: str, permutations: int
) -> None:
    """Squared shift of the mean colour index of the smallest and of the largest group, without bias.

    In variances of a filter: (mean of the group − mean of the layer)², less its mean under permuted labels, which is
    larger for a small group. 0 on average where groups are random, whatever their sizes; may be negative.
    """
    sizes = np.bincount(labels)
    if len(set(sizes.tolist())) == 1:
        return
    kept = learned & np.isfinite(index)
    values, group = index[kept], labels[kept]
    draws = permuted_labels(group, permutations, 0)
    for which, chosen in (("smallest", int(sizes.argmin())), ("largest", int(sizes.argmax()))):
        measure = f"specialisation_{which}_group"
        if not (group == chosen).any():
            rows.note(measure, "no learned filter in this group", layer)
            continue
        if np.ptp(values) == 0 or (group == chosen).all():
            rows.note(measure, "random groups do not differ: nothing to compare", layer)
            continue
        member = draws == chosen
        by_chance = ((member @ values / member.sum(1) - values.mean()) ** 2).mean()
        shift = (values[group == chosen].mean() - values.mean()) ** 2 - by_chance
        rows.add(measure, shift / values.var(), "variances of a filter", layer)


def _add_latent_partition(
    rows: Rows,
    model: nn.Module,
    wiring: dict[str, LayerWiring],
    index: NDArray,
    centroid: NDArray,
    learned: NDArray,
    permutations: int,
) -> None:
    """Does a second layer without groups read the first in parts that differ in colour (Voss et al. 2021)?"""
    layer, first = next(iter(wiring.items()))
    reader = first.first_reader()
    weight = None if reader is None else model.get_submodule(reader).weight
    if not isinstance(weight, Tensor) or weight.dim() != 4 or weight.shape[1] != len(index):
        return  # the reader is cut into groups, or reads more than this layer
    try:
        coupling = latent.coupling(weight.detach().float().cpu().numpy())
        factor = latent.factors(coupling, 1).read
        found = {
            "latent_colour_correlation": latent.associations(factor, index, learned, permutations)[0],
            "latent_frequency_correlation": latent.associations(factor, centroid, learned, permutations)[0],
        }
        _, parts = latent.spectral_groups(coupling, 2)
    except ValueError as error:
        rows.note("latent_colour_correlation", str(error), layer)
        return
    for measure, inference in found.items():
        if not np.isfinite(inference.value):
            rows.note(measure, inference.note, layer)
            continue
        rows.add(measure, inference.value, "|r|", layer)
        rows.add(measure, _rank_correlation_by_chance(inference.n, permutations), "|r|", layer, "labels permuted")
        if inference.p is not None:
            rows.add(f"{measure}_p", inference.p, "p", layer, "labels permuted")
    kept = learned & (parts >= 0)
    if len(set(parts[kept].tolist())) > 1:
        _add_separation(rows, "colour", index, parts, kept, layer, permutations, "spectral partition")
    else:
        rows.note("separation_colour_auc", "all learned filters are in one spectral part", layer)


def _rank_correlation_by_chance(count: int, permutations: int) -> float:
    """Mean |Spearman r| of two unrelated orders of so many filters."""
    ranks = np.arange(count) - (count - 1) / 2
    shuffled = permuted_labels(np.arange(count), permutations, 0) - (count - 1) / 2
    return float(np.abs(shuffled @ ranks / (ranks @ ranks)).mean())
