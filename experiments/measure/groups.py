"""Correlation and similarity between the filters of a layer, within and between groups, with their nulls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from analysis import correlation, latent, partitions, similarity
from analysis.correlation import GroupContrast
from analysis.null_filters import NULL_FILTERS, group_weights
from analysis.nulls import ARBITRARY_PARTITION, LABELS_PERMUTED, TRAINED, UNTRAINED, narrowed
from analysis.responses import Input, Refiltered, ResponseStatistics, collect
from analysis.similarity import Moments, MomentStatistics, Similarity
from experiments.measure.context import MeasureContext
from experiments.measure.groupings import input_groups, output_groups, reads_dense_layers, sampled_layers
from experiments.measure.table import Array, Item, Note, Value
from gconv.partition import Partition

PARTITIONS = 20  # random partitions of a layer, for nulls that cost no pass over the images
CUTS_OF_DENSE = {"": "~2", "4 groups": "~4", "log:4": "~log:4"}  # of a layer without groups, by the null's last word
MAX_CLUSTERS = 16  # groups that filters are clustered into
SIMILARITIES: dict[str, Similarity] = {
    "cka_between": similarity.unbiased_cka,
    "cca_between": similarity.mean_cca,
    "pwcca_between": similarity.pwcca,
    "procrustes_between": similarity.procrustes,
}

Statistics = ResponseStatistics | MomentStatistics


def measure_groups(context: MeasureContext) -> Iterator[Item]:
    """Yield correlation and similarity within and between the groups of every layer.

    The outputs of a layer are grouped by what computes them (``computed``) and by what reads them (``read``); its
    inputs by its own groups (``input``; also ``input_of_dense`` where layers without groups compute them, so that
    wiring alone makes no groups there). The nulls are the untrained network and permuted labels; with
    ``options.draws`` also random and rotated filters on the trained inputs (``analysis.null_filters``), and partitions
    that no layer was trained with. The contrasts are measured on training images too (``training_…``).
    """
    wiring, draws, permutations = context.wiring, context.options.draws, context.options.permutations
    sampled = sampled_layers(wiring)
    for null, model in ((TRAINED, context.network), (UNTRAINED, context.untrained)):
        responses = _collect(context, model, sampled if draws else [])
        for layer in wiring:
            statistics = responses[layer]
            corr = _correlation(statistics)
            yield from _mean_correlation(statistics, corr, layer, null)
            groupings = output_groups(wiring[layer])
            for side, labels in groupings.items():
                yield from _contrast(side, correlation.group_contrast(corr, labels), layer, null)
                if null == TRAINED:
                    yield from _contrast_p(side, corr, labels, layer, permutations)
                if draws and layer in sampled:
                    yield from _agreement(side, corr, labels, layer, null, permutations)
            if labels := input_groups(wiring[layer]):
                of_input = _correlation(responses[Input(layer)])
                contrast = correlation.group_contrast(of_input, labels)
                yield from _contrast("input", contrast, layer, null)
                if reads_dense_layers(wiring, layer):
                    yield from _contrast("input_of_dense", contrast, layer, null)
                if null == TRAINED:
                    yield from _contrast_p("input", of_input, labels, layer, permutations)
            if isinstance(statistics, MomentStatistics):
                if "computed" in groupings:
                    yield from _similarity([statistics], groupings["computed"], layer, null)
                elif len(set(wiring[layer].computed_by)) == 1:
                    if null == TRAINED:
                        yield from _null_partitions(corr, statistics, layer, draws)
                    else:
                        yield from _arbitrary_partitions([statistics], layer, null)
            if null == TRAINED and layer in sampled:
                yield Array(f"correlation {layer}", corr.astype(np.float32))
                for side, labels in groupings.items():
                    yield Array(f"groups {layer} {side}", np.asarray(labels))
    yield from _contrasts_on_training_images(context)
    if draws:
        yield from _null_filters(context, sampled)


def _collect(context: MeasureContext, model: nn.Module, sampled: Sequence[str]) -> Mapping[str | Input, Statistics]:
    """Collect the outputs of all layers, of some with fourth-order moments, and the inputs of grouped layers."""
    into: dict[str | Input, Statistics] = {
        layer: MomentStatistics() if layer in sampled else ResponseStatistics() for layer in context.wiring
    }
    into |= {Input(name): ResponseStatistics() for name, layer in context.wiring.items() if input_groups(layer)}
    return collect(model, context.images.test(), into)


def _null_filters(context: MeasureContext, sampled: Sequence[str]) -> Iterator[Item]:
    """Yield correlation and similarity of trained layers with filters that learned nothing, averaged over the draws."""
    network, wiring = context.network, context.wiring
    taps: dict[tuple[str, str], list[Refiltered]] = {}
    for layer in sampled:
        module = network.get_submodule(layer)
        if wiring[layer].sources and max(weight.shape[1] for weight in group_weights(module)) > 1:
            for null, drawn_filters in NULL_FILTERS.items():
                taps[layer, null] = [
                    Refiltered(layer, drawn_filters(module, seed)) for seed in range(context.options.draws)
                ]
    into = {tap: MomentStatistics() for of_layer in taps.values() for tap in of_layer}
    responses = collect(network, context.images.test(), into) if into else into
    for (layer, null), of_layer in taps.items():
        statistics = [responses[tap] for tap in of_layer]
        matrices = [_correlation(of_draw) for of_draw in statistics]
        yield Value("mean_abs_correlation", float(np.mean([_mean_abs(corr) for corr in matrices])), "|r|", layer, null)
        labels = output_groups(wiring[layer]).get("computed")
        if labels is not None:
            contrasts = [correlation.group_contrast(corr, labels) for corr in matrices]
            yield from _contrast("computed", correlation.mean_contrast(contrasts), layer, null)
            yield from _similarity(statistics, labels, layer, null, ("cka_between",))
        elif len(set(wiring[layer].computed_by)) == 1:
            yield from _arbitrary_partitions(statistics, layer, null)


def _contrasts_on_training_images(context: MeasureContext) -> Iterator[Item]:
    outputs = {name: sides for name, layer in context.wiring.items() if (sides := output_groups(layer))}
    inputs = {name: labels for name, layer in context.wiring.items() if (labels := input_groups(layer))}
    into: dict[str | Input, Statistics] = {layer: ResponseStatistics() for layer in outputs}
    into |= {Input(layer): ResponseStatistics() for layer in inputs}
    if not into:
        return
    responses = collect(context.network, context.images.training(), into)
    for layer, sides in outputs.items():
        corr = _correlation(responses[layer])
        for side, labels in sides.items():
            yield from _contrast(side, correlation.group_contrast(corr, labels), layer, TRAINED, prefix="training_")
    for layer, labels in inputs.items():
        contrast = correlation.group_contrast(_correlation(responses[Input(layer)]), labels)
        yield from _contrast("input", contrast, layer, TRAINED, prefix="training_")


def _correlation(statistics: Statistics) -> NDArray[np.float64]:
    responses = statistics.responses if isinstance(statistics, MomentStatistics) else statistics
    return correlation.correlation_matrix(responses.covariance)


def _mean_correlation(statistics: Statistics, corr: NDArray, layer: str, null: str) -> Iterator[Item]:
    """Yield the mean |r| over all pairs of filters, and the number of dead filters."""
    responses = statistics.responses if isinstance(statistics, MomentStatistics) else statistics
    not_finite = int((~np.isfinite(np.diag(responses.covariance.numpy()))).sum())
    if not_finite:
        note = f"{not_finite} of {len(corr)} filters have responses that are not finite: left out"
        yield Note("mean_abs_correlation", note, layer)
    mean = _mean_abs(corr)
    if np.isfinite(mean):
        yield Value("mean_abs_correlation", mean, "|r|", layer, null)
    else:
        yield Note("mean_abs_correlation", "fewer than two filters vary", layer)
    yield Value("dead_filters", int(np.isnan(np.diag(corr)).sum()) - not_finite, "filters", layer, null)


def _mean_abs(corr: NDArray) -> float:
    """Return the mean |r| over all pairs of filters that vary; NaN if there is no pair."""
    alive = np.isfinite(corr) & ~np.eye(len(corr), dtype=bool)
    return float(np.abs(corr[alive]).mean()) if alive.any() else float("nan")


def _contrast(
    side: str, contrast: GroupContrast, layer: str, null: str, groups: str = "", prefix: str = ""
) -> Iterator[Item]:
    """Yield the mean |r| within groups, between groups, and their ratio."""
    if not np.isfinite(contrast.difference):
        note = f"{contrast.dead} filters are dead or not finite: no pair within or between groups"
        yield Note(f"{prefix}within_{side}", note, layer)
        return
    yield Value(f"{prefix}within_{side}", contrast.within, "|r|", layer, null, groups)
    yield Value(f"{prefix}between_{side}", contrast.between, "|r|", layer, null, groups)
    yield Value(f"{prefix}ratio_{side}", contrast.ratio, "", layer, null, groups)


def _contrast_p(side: str, corr: NDArray, labels: Sequence[int], layer: str, permutations: int) -> Iterator[Item]:
    if np.isfinite(correlation.group_contrast(corr, labels).difference):
        p = correlation.contrast_test(corr, labels, permutations)
        yield Value(f"within_over_between_{side}_p", p, "p", layer, LABELS_PERMUTED)


def _agreement(
    side: str, corr: NDArray, labels: Sequence[int], layer: str, null: str, permutations: int
) -> Iterator[Item]:
    """Yield how well the clusters of correlated filters agree with the groups."""
    measure, groups = f"clusters_are_groups_{side}", len(set(labels))
    if groups > MAX_CLUSTERS:
        return
    try:
        agreement = latent.agreement(partitions.spectral_partition(corr, groups), labels, permutations)
    except ValueError as error:
        yield Note(measure, str(error), layer)
        return
    yield Value(measure, agreement.value, "adjusted Rand index", layer, null)
    if null == TRAINED and agreement.p is not None:
        yield Value(f"{measure}_p", agreement.p, "p", layer, LABELS_PERMUTED)


def _similarity(
    statistics: Sequence[MomentStatistics],
    labels: Sequence[int],
    layer: str,
    null: str,
    names: Sequence[str] = tuple(SIMILARITIES),
) -> Iterator[Item]:
    """Yield the mean similarity between the groups of a layer, averaged over the draws of a null."""
    for name in names:
        try:
            between = [
                similarity.mean_between(similarity.between_groups(of.moments, labels, SIMILARITIES[name]))
                for of in statistics
            ]
        except ValueError as error:
            yield Note(name, str(error), layer)
        else:
            yield Value(name, float(np.mean(between)), "", layer, null)


def _arbitrary_partitions(statistics: Sequence[MomentStatistics], layer: str, null: str) -> Iterator[Item]:
    """Yield the CKA between arbitrary parts of a layer without groups that learned nothing."""
    for last, spec in CUTS_OF_DENSE.items():
        try:
            between = []
            for of in statistics:
                sizes = Partition.of(spec, int(of.moments.alive.sum())).sizes
                cka = similarity.random_splits(of.moments, sizes, similarity.unbiased_cka, PARTITIONS)
                between.append(similarity.mean_between(cka).mean())
        except ValueError as error:
            yield Note("cka_between", str(error), layer)
        else:
            cut = str(Partition.of(spec, len(statistics[0].moments.alive)))
            full = narrowed(null, ARBITRARY_PARTITION, last)
            yield Value("cka_between", float(np.mean(between)), "", layer, full, cut)


def _null_partitions(corr: NDArray, statistics: MomentStatistics, layer: str, draws: int) -> Iterator[Item]:
    """Yield contrasts and similarities of a trained layer without groups, under partitions it was not trained with."""
    for last, spec in CUTS_OF_DENSE.items():
        try:
            cut = Partition.of(spec, len(corr))
            for null, partition in partitions.null_partitions(corr, cut.sizes, PARTITIONS).items():
                yield from _contrast("computed", partition.contrast, layer, narrowed(null, last), str(cut))
            moments: Moments = statistics.moments
            living = Partition.of(spec, int(moments.alive.sum())).sizes
        except ValueError as error:
            yield Note(narrowed("null partitions", last), str(error), layer)
            continue
        for name, measure in SIMILARITIES.items():
            if name != "cka_between" and last:
                continue  # costly: measured for the first cut alone
            splits = PARTITIONS if name == "cka_between" else draws
            try:
                between = similarity.mean_between(similarity.random_splits(moments, living, measure, splits)).mean()
            except ValueError as error:
                yield Note(name, str(error), layer)
            else:
                yield Value(name, between, "", layer, narrowed(ARBITRARY_PARTITION, last), str(cut))
