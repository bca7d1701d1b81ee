"""Do the filters of a group belong together? Correlation, similarity and the covariance between layers, with nulls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from analysis import correlation, interlayer, partitions, similarity
from analysis.correlation import GroupContrast
from analysis.responses import ResponseStatistics, collect, collect_pairs, collect_random_filters
from analysis.similarity import Moments, MomentStatistics
from experiments.measure.table import Rows
from gconv.partition import Partition
from gconv.wiring import LayerWiring

LAYERS_DRAWN = 6  # convolutions, evenly spaced: their matrices are kept for the figures, and cut as none was trained
PARTITIONS = 20  # random cuts of a layer for each draw of what costs a pass over the images
CUT_OF_DENSE = "~2"  # the groups that a layer without any is cut into for comparison

Images = Callable[[], Iterator[Tensor]]


def measure_groups(
    rows: Rows,
    trained: nn.Module,
    untrained: nn.Module,
    wiring: dict[str, LayerWiring],
    images: Images,
    permutations: int,
    draws: int,
) -> dict[str, np.ndarray]:
    """All that is measured between filters; returns the matrices that figures need.

    Against the same network untrained and against permuted labels always; with ``draws`` also similarity between
    groups, random filters on the trained inputs, partitions that no layer was trained with, and what lies between
    layers.
    """
    arrays: dict[str, np.ndarray] = {}
    names = list(wiring)
    drawn = {names[k] for k in np.linspace(0, len(names) - 1, LAYERS_DRAWN).round().astype(int)}
    for null, model in (("", trained), ("untrained", untrained)):
        gathered = collect(model, images(), names, MomentStatistics if draws else ResponseStatistics)
        for layer, statistics in gathered.items():
            ways = groupings(wiring[layer])
            responses = statistics.responses if isinstance(statistics, MomentStatistics) else statistics
            corr = correlation.correlation_matrix(responses.covariance)
            alive = np.isfinite(corr) & ~np.eye(len(corr), dtype=bool)
            if alive.any():
                rows.add("mean_abs_correlation", np.abs(corr[alive]).mean(), "|r|", layer, null)
            else:
                rows.note("mean_abs_correlation", "fewer than two filters vary", layer)
            rows.add("dead_filters", int(np.isnan(np.diag(corr)).sum()), "filters", layer, null)
            for side, labels in ways.items():
                contrast = correlation.group_contrast(corr, labels)
                _add_contrast(rows, side, contrast, layer, null)
                if not null and np.isfinite(contrast.difference):
                    p = correlation.contrast_test(corr, labels, permutations)
                    rows.add(f"within_over_between_{side}_p", p, "p", layer, "labels permuted")
            if isinstance(statistics, MomentStatistics):
                if "computed" in ways:
                    _add_similarity(rows, statistics.moments, ways["computed"], layer, null)
                elif not null and layer in drawn and len(set(wiring[layer].computed_by)) == 1:
                    _add_null_partitions(rows, corr, statistics.moments, layer, draws)
            if not null and layer in drawn:
                arrays[f"correlation {layer}"] = corr.astype(np.float32)
                for side, labels in ways.items():
                    arrays[f"groups {layer} {side}"] = np.asarray(labels)
    if not draws:
        return arrays
    grouped = [layer for layer in names if layer in drawn and "computed" in groupings(wiring[layer])]
    for layer, fresh in collect_random_filters(trained, images(), grouped, draws).items():
        labels = groupings(wiring[layer])["computed"]
        matrices = [correlation.correlation_matrix(statistics.covariance) for statistics in fresh]
        contrast = correlation.mean_contrast([correlation.group_contrast(matrix, labels) for matrix in matrices])
        _add_contrast(rows, "computed", contrast, layer, "random filters")
    return arrays | _measure_between_layers(rows, trained, untrained, wiring, images, drawn)


def groupings(wiring: LayerWiring) -> dict[str, list[int]]:
    """How a layer's filters fall into several groups: by what computes and, where that differs, by what reads them.

    Groups of one filter each, as around a depthwise convolution, are left out: there is no pair within a group.
    """
    found = {}
    if _several_groups(wiring.computed_by):
        found["computed"] = list(wiring.computed_by)
    reading = wiring.reading_groups()
    known = [group for group in reading if group is not None]
    if len(known) == len(reading) and _several_groups(known) and known != found.get("computed"):
        found["read"] = known
    return found


def _several_groups(labels: Sequence[int]) -> bool:
    return 1 < len(set(labels)) < len(labels)


def _add_contrast(rows: Rows, side: str, contrast: GroupContrast, layer: str, null: str, groups: str = "") -> None:
    if not np.isfinite(contrast.difference):
        rows.note(f"within_{side}", f"{contrast.dead} filters are dead: no pair within or between groups", layer)
        return
    rows.add(f"within_{side}", contrast.within, "|r|", layer, null, groups)
    rows.add(f"between_{side}", contrast.between, "|r|", layer, null, groups)
    rows.add(f"ratio_{side}", contrast.ratio, "", layer, null, groups)


def _add_similarity(rows: Rows, moments: Moments, labels: Sequence[int], layer: str, null: str) -> None:
    """Mean similarity between the groups of a layer."""
    try:
        between = similarity.mean_between(similarity.between_groups(moments, labels, similarity.unbiased_cka))
    except ValueError as error:
        rows.note("cka_between", str(error), layer)
    else:
        rows.add("cka_between", float(between), "", layer, null)


def _add_null_partitions(rows: Rows, corr: NDArray, moments: Moments, layer: str, draws: int) -> None:
    """A layer without groups under partitions that it was not trained with."""
    try:
        cut = Partition.of(CUT_OF_DENSE, len(corr))
        for null, partition in partitions.null_partitions(corr, cut.sizes, PARTITIONS * draws).items():
            _add_contrast(rows, "computed", partition.contrast, layer, null, str(cut))
        living = Partition.of(CUT_OF_DENSE, int(moments.alive.sum())).sizes
        splits = similarity.random_splits(moments, living, similarity.unbiased_cka, PARTITIONS * draws)
        between = similarity.mean_between(splits).mean()
        rows.add("cka_between", between, "", layer, "arbitrary partition", str(cut))
    except ValueError as error:
        rows.note("null partitions", str(error), layer)


def _measure_between_layers(
    rows: Rows,
    trained: nn.Module,
    untrained: nn.Module,
    wiring: dict[str, LayerWiring],
    images: Images,
    drawn: set[str],
) -> dict[str, np.ndarray]:
    """Whitened covariance of a layer with the grouped one that reads it: the share of its energy on the blocks."""
    arrays: dict[str, np.ndarray] = {}
    pairs: dict[tuple[str, str], tuple[list[int], tuple[int, ...]]] = {}
    for name, layer in wiring.items():
        reader = layer.first_reader()
        read = layer.reading_groups() if reader else []
        known = [group for group in read if group is not None]
        if (
            reader
            and len(known) == len(read)
            and _several_groups(known)
            and _several_groups(wiring[reader].computed_by)
        ):
            pairs[name, reader] = known, wiring[reader].computed_by
    for null, model in (("", trained), ("untrained", untrained)) if pairs else ():
        for (first, second), statistics in collect_pairs(model, images(), list(pairs)).items():
            layer, cut = f"{first}-{second}", rows.groups[second]
            try:
                whitened = interlayer.whitened_covariance(
                    statistics.first.covariance,
                    statistics.second.covariance,
                    statistics.cross_covariance,
                    statistics.distinct,
                )
                energy = interlayer.block_energy(whitened.matrix, *pairs[first, second])
            except ValueError as error:
                rows.note("on_block_energy", str(error), layer)
                continue
            rows.add("on_block_energy", energy.squared, "fraction", layer, null, cut)
            if not null:
                rows.add("on_block_energy", energy.chance, "fraction", layer, "block areas", cut)
                if energy.test.p is not None:
                    rows.add("on_block_energy_p", energy.test.p, "p", layer, "labels permuted", cut)
                if second in drawn:
                    arrays[f"whitened {layer}"] = whitened.matrix.astype(np.float32)
    return arrays
