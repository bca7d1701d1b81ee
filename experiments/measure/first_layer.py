"""Do groups split the first layer by colour, frequency and orientation? And does a dense net do so unasked?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from analysis import colour, frequency, latent
from analysis.separation import mean_auc, separation
from analysis.stats import permuted_labels
from experiments.measure.groups import groupings
from experiments.measure.table import Rows
from gconv.wiring import LayerWiring


def measure_first_layer(
    rows: Rows, trained: nn.Module, untrained: nn.Module, wiring: dict[str, LayerWiring], permutations: int
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
    index, learned = colour.colour_index(filters), colour.learned(filters)
    change = colour.change_from_initialisation(filters, initial)
    tuned = frequency.tuning(filters)
    rows.add("learned_filters", learned.mean(), "fraction", layer)
    rows.add("correlation_with_initialisation", change.correlation.mean(), "r", layer)
    arrays = {"filters": filters, "colour_index": index, "learned": learned, "frequency": tuned.centroid}
    if learned.any():
        rows.add("colour_index", index[learned].mean(), "fraction", layer)
        rows.add("frequency_centroid", tuned.centroid[learned].mean(), "cycles per pixel", layer)
        rows.add("orientation_selectivity", tuned.selectivity[learned].mean(), "fraction", layer)
    labels = groupings(first).get("read")
    if labels is not None:
        arrays["filter_groups"] = np.asarray(labels)
        attributes = {"colour": index, "frequency": tuned.centroid, "orientation": tuned.selectivity}
        for name, values in attributes.items():
            _add_separation(rows, name, values, np.asarray(labels), learned, layer, permutations)
        _add_specialisation(rows, index, np.asarray(labels), learned, layer, permutations)
    _add_latent_partition(rows, trained, wiring, index, tuned.centroid, learned, permutations)
    return arrays


def _rgb_filters(model: nn.Module, layer: str) -> NDArray | None:
    weight = model.get_submodule(layer).weight
    if not isinstance(weight, Tensor) or weight.dim() != 4 or weight.shape[1] != 3:
        return None
    return weight.detach().float().cpu().numpy()


def _add_separation(
    rows: Rows, name: str, values: NDArray, labels: NDArray, learned: NDArray, layer: str, permutations: int
) -> None:
    apart = separation(values, labels, learned, permutations)
    for statistic in ("difference", "auc", "information"):
        found = getattr(apart, statistic)
        measure = f"separation_{name}_{statistic}"
        if not np.isfinite(found.value):
            rows.note(measure, found.note, layer)
            continue
        rows.add(measure, found.value, "", layer)
        if found.p is not None:
            rows.add(f"{measure}_p", found.p, "p", layer, "labels permuted")
        if statistic == "auc":
            rows.add(
                measure, _auc_by_chance(values[learned], labels[learned], permutations), "", layer, "labels permuted"
            )
    if name == "colour" and np.isfinite(apart.difference.value):
        rows.add("colour_difference", apart.difference.value, "fraction", layer)
        if apart.difference.p is not None:
            rows.add("colour_difference_p", apart.difference.p, "p", layer, "labels permuted")


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
