"""Do groups split the first layer by colour, frequency and orientation? And does a dense net do so unasked?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from analysis import colour, frequency, latent
from analysis.separation import mean_auc, separation
from analysis.stats import permuted_labels
from experiments.measure.groups import groupings
from experiments.measure.images import Shown
from experiments.measure.table import Rows
from gconv.wiring import LayerWiring

CROPS = 20  # to which a filter responds most, for its colour selectivity


def measure_first_layer(
    rows: Rows,
    trained: nn.Module,
    untrained: nn.Module,
    wiring: dict[str, LayerWiring],
    shown: Shown,
    permutations: int,
) -> dict[str, np.ndarray]:
    """Colour and spatial tuning of the filters that read RGB, by the group that reads them.

    Rule, fixed beforehand: filters that never left their initialisation are noise, which looks coloured, and are left
    out of all comparisons (``colour.learned``).
    """
    layer, first = next(iter(wiring.items()))
    filters, initial = _rgb_filters(trained, layer), _rgb_filters(untrained, layer)
    if filters is None or initial is None:
        rows.note("colour_index", "the first convolution does not read RGB in one group", layer)
        return {}
    learned, tuned, hue = colour.learned(filters), frequency.tuning(filters), colour.first_colour(filters)
    attributes = {
        "colour": colour.colour_index(filters),
        "frequency": tuned.centroid,
        "orientation": tuned.selectivity,
        "selectivity": _colour_selectivity(rows, trained, layer, shown),
    }
    rows.add("learned_filters", learned.mean(), "fraction", layer)
    rows.add("smoothness", float(np.nanmean(colour.smoothness(filters))), "fraction", layer)
    change = colour.change_from_initialisation(filters, initial)
    rows.add("correlation_with_initialisation", float(np.nanmean(change.correlation)), "r", layer)
    arrays = {"filters": filters, "colour_index": attributes["colour"], "learned": learned}
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
        _add_specialisation(rows, attributes["colour"], np.asarray(labels), learned, layer, permutations)
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
    rows: Rows, name: str, values: NDArray, labels: NDArray, learned: NDArray, layer: str, permutations: int
) -> None:
    apart = separation(values, labels, learned, permutations)
    measures = {
        f"{name}_difference": apart.difference,
        f"separation_{name}_auc": apart.auc,
        f"separation_{name}_information": apart.information,
    }
    for measure, found in measures.items():
        if not np.isfinite(found.value):
            rows.note(measure, found.note, layer)
            continue
        rows.add(measure, found.value, "", layer)
        if found.p is not None:
            rows.add(f"{measure}_p", found.p, "p", layer, "labels permuted")
    if np.isfinite(apart.auc.value):
        kept = learned & np.isfinite(values)
        chance = _auc_by_chance(values[kept], labels[kept], permutations)
        rows.add(f"separation_{name}_auc", chance, "", layer, "labels permuted")


def _auc_by_chance(values: NDArray, labels: NDArray, permutations: int) -> float:
    """Mean area under the curve under permuted labels: above 1/2, for the higher group counts as the higher."""
    return float(mean_auc(values, permuted_labels(labels, permutations, 0)).mean())


def _add_specialisation(
    rows: Rows, index: NDArray, labels: NDArray, learned: NDArray, layer: str, permutations: int
) -> None:
    """How far the mean colour index of the smallest and of the largest group lies from that of random groups."""
    sizes = np.bincount(labels)
    if len(set(sizes.tolist())) == 1:
        return
    values, group = index[learned], labels[learned]
    draws = permuted_labels(group, permutations, 0)
    for which, chosen in (("smallest", int(sizes.argmin())), ("largest", int(sizes.argmax()))):
        measure = f"specialisation_{which}_group"
        if not (group == chosen).any():
            rows.note(measure, "no learned filter in this group", layer)
            continue
        member = draws == chosen
        null = member @ values / member.sum(1)
        spread = null.std()
        if spread == 0:
            rows.note(measure, "random groups do not differ: nothing to compare", layer)
            continue
        distance = abs(values[group == chosen].mean() - values.mean())
        rows.add(measure, distance / spread, "standard deviations of random groups", layer)


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
        value = mean_auc(index[kept], parts[kept][None])[0]
        rows.add("separation_colour_auc", value, "", layer, "spectral partition", "2")
        chance = _auc_by_chance(index[kept], parts[kept], permutations)
        rows.add("separation_colour_auc_permuted", chance, "", layer, "spectral partition", "2")
    else:
        rows.note("separation_colour_auc", "all learned filters are in one spectral part", layer)


def _rank_correlation_by_chance(count: int, permutations: int) -> float:
    """Mean |Spearman r| of two unrelated orders of so many filters."""
    ranks = np.arange(count) - (count - 1) / 2
    shuffled = permuted_labels(np.arange(count), permutations, 0) - (count - 1) / 2
    return float(np.abs(shuffled @ ranks / (ranks @ ranks)).mean())
