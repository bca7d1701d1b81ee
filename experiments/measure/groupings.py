"""The groups that the filters of a layer fall into, read from the wiring of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gconv.wiring import LayerWiring

SAMPLED_LAYERS = 6  # maximum number of layers with costly nulls and saved matrices


def sampled_layers(wiring: Mapping[str, LayerWiring]) -> list[str]:
    """Return at most ``SAMPLED_LAYERS`` convolutions, evenly spaced: they have the costly nulls and saved matrices."""
    names = list(wiring)
    return list(dict.fromkeys(names[k] for k in np.linspace(0, len(names) - 1, SAMPLED_LAYERS).round().astype(int)))


def output_groups(layer: LayerWiring) -> dict[str, list[int]]:
    """Return the group of each filter: ``computed``, the group that computes it, and ``read``, the one that reads it.

    ``read`` is left out where it is equal to ``computed``. Groups of one filter each, as around a depthwise
    convolution, are left out: they have no pair within a group.
    """
    groupings = {}
    if _in_several_groups(layer.computed_by):
        groupings["computed"] = list(layer.computed_by)
    if (read := reader_groups(layer)) and read != groupings.get("computed"):
        groupings["read"] = read
    return groupings


def reader_groups(layer: LayerWiring) -> list[int]:
    """Return the one group that reads each filter; empty if a filter has no single one, or all have the same one."""
    reading = layer.reading_groups()
    known = [group for group in reading if group is not None]
    return known if len(known) == len(reading) and _in_several_groups(known) else []


def input_groups(layer: LayerWiring) -> list[int]:
    """Return the group that reads each input channel; empty if there is only one group."""
    return list(layer.inputs_read_by) if _in_several_groups(layer.inputs_read_by) else []


def first_split_layer(wiring: Mapping[str, LayerWiring]) -> tuple[str, str] | None:
    """Return the first layer whose filters are read by several groups, and the convolution that reads them."""
    for name, layer in wiring.items():
        reader = layer.first_reader()
        if "read" in output_groups(layer) and reader is not None:
            return name, reader
    return None


def reads_dense_layers(wiring: Mapping[str, LayerWiring], name: str) -> bool:
    """Tell if all filters that a layer reads are computed by layers without groups."""
    computing = [layer.computed_by for layer in wiring.values() if name in layer.read_by]
    return bool(computing) and all(len(set(groups)) == 1 for groups in computing)


def _in_several_groups(labels: Sequence[int]) -> bool:
    return 1 < len(set(labels)) < len(labels)
