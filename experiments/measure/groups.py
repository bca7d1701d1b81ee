"""Do the filters of a group belong together? Correlation and similarity between filters, each with its nulls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from analysis import correlation, latent, partitions, similarity
from analysis.correlation import GroupContrast
from analysis.null_filters import group_weights, random_filters, rotated_filters
from analysis.responses import Input, Refiltered, ResponseStatistics, collect
from analysis.similarity import Measure, Moments, MomentStatistics
from experiments.measure.images import Shown
from experiments.measure.table import Rows
from gconv.partition import Partition
from gconv.wiring import LayerWiring

LAYERS_DRAWN = 6  # evenly spaced: the figures keep their matrices, and the costly nulls are theirs alone
PARTITIONS = 20  # random cuts of a layer, where a null costs no pass over the images
CUTS_OF_DENSE = {"": "~2", ", 4 groups": "~4", ", log:4": "~log:4"}  # of a layer without groups, by the null's suffix
CLUSTERED = 16  # groups at most that filters are clustered into
SIMILARITIES: dict[str, Measure] = {
    "cka_between": similarity.unbiased_cka,
    "cca_between": similarity.mean_cca,
    "pwcca_between": similarity.pwcca,
    "procrustes_between": similarity.procrustes,
}

NULL_FILTERS = {"random filters": random_filters, "rotated filters": rotated_filters}

Gathered = ResponseStatistics | MomentStatistics


def measure_groups(
    rows: Rows,
    trained: nn.Module,
    untrained: nn.Module,
    wiring: dict[str, LayerWiring],
    shown: Shown,
    permutations: int,
    draws: int,
) -> dict[str, np.ndarray]:
    """All that is measured between the filters of a layer; returns the matrices that figures need.

    What a layer puts out is grouped by what computes it (``computed``) and by what reads it (``read``); what it reads,
    by its own groups (``input``; ``input_of_dense`` where a layer without groups computes it, so that wiring alone
    makes no groups there). Against the same network untrained and against permuted labels always; with ``draws`` also
    similarity between groups, random and rotated filters on the trained inputs (``analysis.null_filters``), and
    partitions that no layer was trained with. The contrasts alone are told of training images too (``training_…``).
    """
    arrays: dict[str, np.ndarray] = {}
    drawn = drawn_layers(wiring)
    for null, model in (("", trained), ("untrained", untrained)):
        gathered = _collect(model, wiring, shown, drawn if draws else [])
        for layer in wiring:
            statistics = gathered[layer]
            corr = _correlation(statistics)
            _add_mean(rows, statistics, corr, layer, null)
            ways = groupings(wiring[layer])
            for side, labels in ways.items():
                _add_contrast(rows, side, correlation.group_contrast(corr, labels), layer, null)
                if not null:
                    _add_contrast_p(rows, side, corr, labels, layer, permutations)
                if draws and layer in drawn:
                    _add_agreement(rows, side, corr, labels, layer, null, permutations)
            if labels := input_grouping(wiring[layer]):
                of_input = _correlation(gathered[Input(layer)])
                contrast = correlation.group_contrast(of_input, labels)
                _add_contrast(rows, "input", contrast, layer, null)
                if _read_from_dense(wiring, layer):
                    _add_contrast(rows, "input_of_dense", contrast, layer, null)
                if not null:
                    _add_contrast_p(rows, "input", of_input, labels, layer, permutations)
            if isinstance(statistics, MomentStatistics):
                if "computed" in ways:
                    _add_similarity(rows, [statistics], ways["computed"], layer, null)
                elif len(set(wiring[layer].computed_by)) == 1:
                    if not null:
                        _add_null_partitions(rows, corr, statistics, layer, draws)
                    else:
                        _add_arbitrary_partitions(rows, [statistics], layer, null)
            if not null and layer in drawn:
                arrays[f"correlation {layer}"] = corr.astype(np.float32)
                for side, labels in ways.items():
                    arrays[f"groups {layer} {side}"] = np.asarray(labels)
    _add_training_images(rows, trained, wiring, shown)
    if draws:
        _add_null_filters(rows, trained, wiring, shown, drawn, draws)
    return arrays


def _add_null_filters(
    rows: Rows, trained: nn.Module, wiring: dict[str, LayerWiring], shown: Shown, drawn: Sequence[str], draws: int
) -> None:
    """What the layers of the trained network would show with filters that learned nothing, averaged over the draws."""
    taps: dict[tuple[str, str], list[Refiltered]] = {}
    for layer in drawn:
        module = trained.get_submodule(layer)
        if wiring[layer].sources and max(weight.shape[1] for weight in group_weights(module)) > 1:
            for null, drawn_anew in NULL_FILTERS.items():
                taps[layer, null] = [Refiltered(layer, drawn_anew(module, seed)) for seed in range(draws)]
    into = {tap: MomentStatistics() for of_layer in taps.values() for tap in of_layer}
    gathered = collect(trained, shown.test(), into) if into else into
    for (layer, null), of_layer in taps.items():
        statistics = [gathered[tap] for tap in of_layer]
        matrices = [_correlation(of_draw) for of_draw in statistics]
        rows.add("mean_abs_correlation", float(np.mean([_mean_abs(corr) for corr in matrices])), "|r|", layer, null)
        labels = groupings(wiring[layer]).get("computed")
        if labels is not None:
            contrasts = [correlation.group_contrast(corr, labels) for corr in matrices]
            _add_contrast(rows, "computed", correlation.mean_contrast(contrasts), layer, null)
            _add_similarity(rows, statistics, labels, layer, null, ("cka_between",))
        elif len(set(wiring[layer].computed_by)) == 1:
            _add_arbitrary_partitions(rows, statistics, layer, null)


def _read_from_dense(wiring: Mapping[str, LayerWiring], layer: str) -> bool:
    """Is all that the layer reads computed by layers without groups?"""
    computing = [of.computed_by for of in wiring.values() if layer in of.read_by]
    return bool(computing) and all(len(set(groups)) == 1 for groups in computing)


def drawn_layers(wiring: Mapping[str, LayerWiring]) -> list[str]:
    """Convolutions, evenly spaced, whose matrices are kept."""
    names = list(wiring)
    return list(dict.fromkeys(names[k] for k in np.linspace(0, len(names) - 1, LAYERS_DRAWN).round().astype(int)))


def groupings(wiring: LayerWiring) -> dict[str, list[int]]:
    """How a layer's filters fall into several groups: by what computes and, where that differs, by what reads them.

    Groups of one filter each, as around a depthwise convolution, are left out: there is no pair within a group.
    """
    found = {}
    if _several_groups(wiring.computed_by):
        found["computed"] = list(wiring.computed_by)
    if (read := reading_grouping(wiring)) and read != found.get("computed"):
        found["read"] = read
    return found


def reading_grouping(wiring: LayerWiring) -> list[int]:
    """The one group that reads each filter; empty where that is not so of all, or they are not in several groups."""
    reading = wiring.reading_groups()
    known = [group for group in reading if group is not None]
    return known if len(known) == len(reading) and _several_groups(known) else []


def first_read_apart(wiring: dict[str, LayerWiring]) -> tuple[str, str] | None:
    """The first layer whose filters several groups read, and the convolution that reads them; None if there is none."""
    for name, of in wiring.items():
        reader = of.first_reader()
        if "read" in groupings(of) and reader is not None:
            return name, reader
    return None


def input_grouping(wiring: LayerWiring) -> list[int]:
    """The group that reads each input channel; empty where they are not in several groups."""
    return list(wiring.inputs_read_by) if _several_groups(wiring.inputs_read_by) else []


def _several_groups(labels: Sequence[int]) -> bool:
    return 1 < len(set(labels)) < len(labels)


def _collect(
    model: nn.Module, wiring: Mapping[str, LayerWiring], shown: Shown, whole: Sequence[str]
) -> dict[str | Input, Gathered]:
    """What all layers put out, with moments of the fourth order of some, and what grouped layers read."""
    into: dict[str | Input, Gathered] = {
        layer: MomentStatistics() if layer in whole else ResponseStatistics() for layer in wiring
    }
    into |= {Input(layer): ResponseStatistics() for layer in wiring if input_grouping(wiring[layer])}
    return collect(model, shown.test(), into)


def _add_training_images(rows: Rows, model: nn.Module, wiring: Mapping[str, LayerWiring], shown: Shown) -> None:
    """Contrasts on images that the network was trained on."""
    several = {layer: ways for layer, of in wiring.items() if (ways := groupings(of))}
    inputs = {layer: labels for layer, of in wiring.items() if (labels := input_grouping(of))}
    into: dict[str | Input, Gathered] = {layer: ResponseStatistics() for layer in several}
    into |= {Input(layer): ResponseStatistics() for layer in inputs}
    if not into:
        return
    gathered = collect(model, shown.training(), into)
    for layer, ways in several.items():
        corr = _correlation(gathered[layer])
        for side, labels in ways.items():
            _add_contrast(rows, side, correlation.group_contrast(corr, labels), layer, "", prefix="training_")
    for layer, labels in inputs.items():
        contrast = correlation.group_contrast(_correlation(gathered[Input(layer)]), labels)
        _add_contrast(rows, "input", contrast, layer, "", prefix="training_")


def _correlation(statistics: Gathered) -> NDArray[np.float64]:
    responses = statistics.responses if isinstance(statistics, MomentStatistics) else statistics
    return correlation.correlation_matrix(responses.covariance)


def _add_mean(rows: Rows, statistics: Gathered, corr: NDArray, layer: str, null: str) -> None:
    responses = statistics.responses if isinstance(statistics, MomentStatistics) else statistics
    wild = int((~np.isfinite(np.diag(responses.covariance.numpy()))).sum())
    if wild:
        rows.note(
            "mean_abs_correlation", f"{wild} of {len(corr)} filters have responses that are not finite: left out", layer
        )
    mean = _mean_abs(corr)
    if np.isfinite(mean):
        rows.add("mean_abs_correlation", mean, "|r|", layer, null)
    else:
        rows.note("mean_abs_correlation", "fewer than two filters vary", layer)
    rows.add("dead_filters", int(np.isnan(np.diag(corr)).sum()) - wild, "filters", layer, null)


def _mean_abs(corr: NDArray) -> float:
    """Mean |r| over all pairs of filters that vary; NaN where there is no pair."""
    alive = np.isfinite(corr) & ~np.eye(len(corr), dtype=bool)
    return float(np.abs(corr[alive]).mean()) if alive.any() else float("nan")


def _add_contrast(
    rows: Rows, side: str, contrast: GroupContrast, layer: str, null: str, groups: str = "", prefix: str = ""
) -> None:
    if not np.isfinite(contrast.difference):
        rows.note(
            f"{prefix}within_{side}",
            f"{contrast.dead} filters are dead or not finite: no pair within or between groups",
            layer,
        )
        return
    rows.add(f"{prefix}within_{side}", contrast.within, "|r|", layer, null, groups)
    rows.add(f"{prefix}between_{side}", contrast.between, "|r|", layer, null, groups)
    rows.add(f"{prefix}ratio_{side}", contrast.ratio, "", layer, null, groups)


def _add_contrast_p(rows: Rows, side: str, corr: NDArray, labels: Sequence[int], layer: str, permutations: int) -> None:
    if np.isfinite(correlation.group_contrast(corr, labels).difference):
        p = correlation.contrast_test(corr, labels, permutations)
        rows.add(f"within_over_between_{side}_p", p, "p", layer, "labels permuted")


def _add_agreement(
    rows: Rows, side: str, corr: NDArray, labels: Sequence[int], layer: str, null: str, permutations: int
) -> None:
    """Do filters cluster, by |r|, into the groups that they are in?"""
    measure, groups = f"clusters_are_groups_{side}", len(set(labels))
    if groups > CLUSTERED:
        return
    try:
        found = latent.agreement(partitions.spectral_partition(corr, groups), labels, permutations)
    except ValueError as error:
        rows.note(measure, str(error), layer)
        return
    rows.add(measure, found.value, "adjusted Rand index", layer, null)
    if not null and found.p is not None:
        rows.add(f"{measure}_p", found.p, "p", layer, "labels permuted")


def _add_similarity(
    rows: Rows,
    statistics: Sequence[MomentStatistics],
    labels: Sequence[int],
    layer: str,
    null: str,
    names: Sequence[str] = tuple(SIMILARITIES),
) -> None:
    """Mean similarity between the groups of a layer, by each measure, averaged over the draws of a null."""
    for name in names:
        try:
            between = [
                similarity.mean_between(similarity.between_groups(of.moments, labels, SIMILARITIES[name]))
                for of in statistics
            ]
        except ValueError as error:
            rows.note(name, str(error), layer)
        else:
            rows.add(name, float(np.mean(between)), "", layer, null)


def _add_arbitrary_partitions(rows: Rows, statistics: Sequence[MomentStatistics], layer: str, null: str) -> None:
    """CKA between arbitrary parts of a layer without groups that learned nothing; the null of that of a trained one."""
    for suffix, spec in CUTS_OF_DENSE.items():
        try:
            between = []
            for of in statistics:
                sizes = Partition.of(spec, int(of.moments.alive.sum())).sizes
                cka = similarity.random_splits(of.moments, sizes, similarity.unbiased_cka, PARTITIONS)
                between.append(similarity.mean_between(cka).mean())
        except ValueError as error:
            rows.note("cka_between", str(error), layer)
        else:
            cut = str(Partition.of(spec, len(statistics[0].moments.alive)))
            rows.add("cka_between", float(np.mean(between)), "", layer, f"{null}, arbitrary partition{suffix}", cut)


def _add_null_partitions(rows: Rows, corr: NDArray, statistics: MomentStatistics, layer: str, draws: int) -> None:
    """A layer without groups under partitions that it was not trained with."""
    for suffix, spec in CUTS_OF_DENSE.items():
        try:
            cut = Partition.of(spec, len(corr))
            for null, partition in partitions.null_partitions(corr, cut.sizes, PARTITIONS).items():
                _add_contrast(rows, "computed", partition.contrast, layer, null + suffix, str(cut))
            moments: Moments = statistics.moments
            living = Partition.of(spec, int(moments.alive.sum())).sizes
        except ValueError as error:
            rows.note(f"null partitions{suffix}", str(error), layer)
            continue
        for name, measure in SIMILARITIES.items():
            if name != "cka_between" and suffix:
                continue  # a dear null is taken of the first cut alone
            splits = PARTITIONS if name == "cka_between" else draws
            try:
                between = similarity.mean_between(similarity.random_splits(moments, living, measure, splits)).mean()
            except ValueError as error:
                rows.note(name, str(error), layer)
            else:
                rows.add(name, between, "", layer, f"arbitrary partition{suffix}", str(cut))
