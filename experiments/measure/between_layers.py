"""Does a layer vary together with the next one group by group? The whitened covariance between layers."""

from __future__ import annotations

import numpy as np
from torch import nn

from analysis import interlayer
from analysis.responses import PairStatistics, collect_pairs
from experiments.measure.groups import LAYERS_DRAWN, reading_grouping
from experiments.measure.images import Shown
from experiments.measure.table import Rows
from gconv.wiring import LayerWiring


def measure_between_layers(
    rows: Rows, trained: nn.Module, untrained: nn.Module, wiring: dict[str, LayerWiring], shown: Shown
) -> dict[str, np.ndarray]:
    """Share of the energy of the whitened covariance that lies on the blocks, for layers whose reader is grouped.

    On training images, as the thesis has it (Ioannou 2017); of a deep network a few pairs, evenly spaced.

    Returns:
        The matrices that figures need.
    """
    arrays: dict[str, np.ndarray] = {}
    pairs = grouped_pairs(wiring)
    for null, model in (("", trained), ("untrained", untrained)) if pairs else ():
        for (first, second), statistics in collect_pairs(model, shown.training(), list(pairs)).items():
            matrix = _add_energy(rows, (first, second), statistics, pairs[first, second], null)
            if matrix is not None and not null:
                arrays[f"whitened {first}-{second}"] = matrix.astype(np.float32)
                arrays[f"whitened {first}-{second} rows"] = np.asarray(pairs[first, second][0])
                arrays[f"whitened {first}-{second} columns"] = np.asarray(pairs[first, second][1])
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
    rows: Rows, pair: tuple[str, str], statistics: PairStatistics, labels: tuple[list[int], list[int]], null: str
) -> np.ndarray | None:
    layer, cut = "-".join(pair), rows.groups[pair[1]]
    try:
        whitened = interlayer.whitened_covariance(
            statistics.first.covariance, statistics.second.covariance, statistics.cross_covariance, statistics.distinct
        )
        energy = interlayer.block_energy(whitened.matrix, *labels)
    except ValueError as error:
        rows.note("on_block_energy", str(error), layer)
        return None
    rows.add("on_block_energy", energy.squared, "fraction", layer, null, cut)
    if not null:
        rows.add("on_block_energy", energy.chance, "fraction", layer, "block areas", cut)
        if energy.test.p is not None:
            rows.add("on_block_energy_p", energy.test.p, "p", layer, "labels permuted", cut)
    return whitened.matrix
