"""Whitened covariance between a layer and the next one: the share of it within the groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from analysis import interlayer
from analysis.null_filters import NULL_FILTERS, group_weights
from analysis.nulls import BLOCK_AREAS, LABELS_PERMUTED, TRAINED, UNTRAINED
from analysis.responses import PairStatistics, Refiltered, collect_pairs
from experiments.measure.context import MeasureContext
from experiments.measure.groupings import SAMPLED_LAYERS, reader_groups
from experiments.measure.table import Array, Item, Note, Value
from gconv.wiring import LayerWiring

Pair = tuple[str, str]  # a layer, and the grouped one that reads it
Labels = tuple[list[int], list[int]]  # group that reads each filter of the first, that computes each of the second


def measure_between_layers(context: MeasureContext) -> Iterator[Item]:
    """Yield the share of energy of the whitened covariance on the blocks, for layers that a grouped layer reads.

    On training images, as in the thesis (Ioannou 2017); of a deep network for a few pairs, evenly spaced. The nulls are
    the untrained network, and random and rotated filters of the reader on the trained inputs. Nothing without draws.
    """
    draws, images = context.options.draws, context.images
    pairs = grouped_pairs(context.wiring)
    if not draws or not pairs:
        return
    nulls: dict[tuple[str | Refiltered, str | Refiltered], tuple[Pair, str]] = {}
    for pair in pairs:
        module = context.network.get_submodule(pair[1])
        for null, drawn_filters in NULL_FILTERS.items():
            for seed in range(draws if max(weight.shape[1] for weight in group_weights(module)) > 1 else 0):
                nulls[pair[0], Refiltered(pair[1], drawn_filters(module, seed))] = pair, null
    of_trained = collect_pairs(context.network, images.training(), [*pairs, *nulls])
    of_untrained = collect_pairs(context.untrained, images.training(), list(pairs))
    groups = context.groups
    for pair, labels in pairs.items():
        by_null = {TRAINED: [of_trained[pair]], UNTRAINED: [of_untrained[pair]]}
        for null in NULL_FILTERS:
            by_null[null] = [of_trained[taps] for taps, key in nulls.items() if key == (pair, null)]
        for null, statistics in by_null.items():
            if statistics:
                yield from _block_energy(pair, statistics, labels, null, groups[pair[1]])


def grouped_pairs(wiring: Mapping[str, LayerWiring]) -> dict[Pair, Labels]:
    """Return the pairs of a layer and the grouped one that reads it, at most ``SAMPLED_LAYERS``, with their groups."""
    pairs: dict[Pair, Labels] = {}
    for name, layer in wiring.items():
        reader, read = layer.first_reader(), reader_groups(layer)
        if reader and read and len(set(wiring[reader].computed_by)) > 1:
            pairs[name, reader] = read, list(wiring[reader].computed_by)
    names = list(pairs)
    kept = np.linspace(0, len(names) - 1, min(SAMPLED_LAYERS, len(names))).round().astype(int)
    return {names[k]: pairs[names[k]] for k in kept}


def _block_energy(
    pair: Pair, statistics: Sequence[PairStatistics], labels: Labels, null: str, groups: str
) -> Iterator[Item]:
    """Yield the energy on the blocks, averaged over the draws of a null, and the matrix of the trained network."""
    layer, energies, matrix = "-".join(pair), [], np.empty(0)
    try:
        for of_draw in statistics:
            matrix = interlayer.whitened_covariance(
                of_draw.first.covariance, of_draw.second.covariance, of_draw.cross_covariance, of_draw.distinct
            ).matrix
            energies.append(interlayer.block_energy(matrix, *labels))
    except ValueError as error:
        yield Note("on_block_energy", str(error), layer)
        return
    squared, share = (float(np.mean([getattr(energy, name) for energy in energies])) for name in ("squared", "share"))
    yield Value("on_block_energy", squared, "fraction", layer, null, groups)
    if np.isfinite(share):
        yield Value("on_block_share", share, "fraction beyond chance", layer, null, groups)
    if null == TRAINED:
        yield Value("on_block_energy", energies[0].chance, "fraction", layer, BLOCK_AREAS, groups)
        if energies[0].test.p is not None:
            yield Value("on_block_energy_p", energies[0].test.p, "p", layer, LABELS_PERMUTED, groups)
        yield Array(f"whitened {layer}", matrix.astype(np.float32))
        yield Array(f"whitened {layer} rows", np.asarray(labels[0]))
        yield Array(f"whitened {layer} columns", np.asarray(labels[1]))
