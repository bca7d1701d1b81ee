"""Does a layer vary together with the next one group by group? The whitened covariance between layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from analysis import interlayer
from analysis.null_filters import group_weights
from analysis.responses import PairStatistics, Refiltered, collect_pairs
from experiments.measure.groups import LAYERS_DRAWN, NULL_FILTERS, reading_grouping
from experiments.measure.images import Shown
from experiments.measure.table import Rows
from gconv.wiring import LayerWiring


def measure_between_layers(
    rows: Rows, trained: nn.Module, untrained: nn.Module, wiring: dict[str, LayerWiring], shown: Shown, draws: int
) -> dict[str, np.ndarray]:
    """Share of the energy of the whitened covariance that lies on the blocks, for layers whose reader is grouped.

    On training images, as the thesis has it (Ioannou 2017); of a deep network a few pairs, evenly spaced. Against the
    same network untrained, and against random and rotated filters of the reader on the trained inputs.

    Returns:
        The matrices that figures need.
    """
    arrays: dict[str, np.ndarray] = {}
    pairs = grouped_pairs(wiring)
    if not pairs:
        return arrays
    nulls: dict[tuple[str | Refiltered, str | Refiltered], tuple[tuple[str, str], str]] = {}
    for pair in pairs:
        module = trained.get_submodule(pair[1])
        for null, drawn_anew in NULL_FILTERS.items():
            for seed in range(draws if max(weight.shape[1] for weight in group_weights(module)) > 1 else 0):
                nulls[pair[0], Refiltered(pair[1], drawn_anew(module, seed))] = pair, null
    of_trained = collect_pairs(trained, shown.training(), [*pairs, *nulls])
    of_untrained = collect_pairs(untrained, shown.training(), list(pairs))
    for pair, labels in pairs.items():
        matrix = _add_energy(rows, pair, [of_trained[pair]], labels, "")
        _add_energy(rows, pair, [of_untrained[pair]], labels, "untrained")
        for null in NULL_FILTERS:
            if drawn := [
                of_trained[taps] for taps, (of_pair, name) in nulls.items() if (of_pair, name) == (pair, null)
            ]:
                _add_energy(rows, pair, drawn, labels, null)
        if matrix is not None:
            name = "-".join(pair)
            arrays[f"whitened {name}"] = matrix.astype(np.float32)
            arrays[f"whitened {name} rows"] = np.asarray(labels[0])
            arrays[f"whitened {name} columns"] = np.asarray(labels[1])
    return arrays


def grouped_pairs(wiring: dict[str, LayerWiring]) -> dict[tuple[str, str], tuple[list[int], list[int]]]:
    """Pairs of a layer and the grouped one that reads it: the reading groups of the one, the computing of the other."""
    found: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
    for name, layer in wiring.items():
        reader, read = layer.first_reader(), reading_grouping(layer)
        if reader and read and len(set(wiring[reader].computed_by)) > 1:
            found[name, reader] = read, list(wiring[reader].computed_by)
    names = list(found)
    kept = np.linspace(0, len(names) - 1, min(LAYERS_DRAWN, len(names))).round().astype(int)
    return {names[k]: found[names[k]] for k in kept}


def _add_energy(
    rows: Rows,
    pair: tuple[str, str],
    statistics: Sequence[PairStatistics],
    labels: tuple[list[int], list[int]],
    null: str,
) -> np.ndarray | None:
    """Energy on the blocks, averaged over the draws of a null; returns the whitened covariance of the last draw."""
    layer, cut = "-".join(pair), rows.groups[pair[1]]
    energies, matrix = [], None
    try:
        for of in statistics:
            whitened = interlayer.whitened_covariance(
                of.first.covariance, of.second.covariance, of.cross_covariance, of.distinct
            )
            matrix = whitened.matrix
            energies.append(interlayer.block_energy(matrix, *labels))
    except ValueError as error:
        rows.note("on_block_energy", str(error), layer)
        return None
    rows.add("on_block_energy", float(np.mean([energy.squared for energy in energies])), "fraction", layer, null, cut)
    share = float(np.mean([energy.share for energy in energies]))
    if np.isfinite(share):
        rows.add("on_block_share", share, "fraction beyond chance", layer, null, cut)
    if not null:
        rows.add("on_block_energy", energies[0].chance, "fraction", layer, "block areas", cut)
        if energies[0].test.p is not None:
            rows.add("on_block_energy_p", energies[0].test.p, "p", layer, "labels permuted", cut)
    return matrix
