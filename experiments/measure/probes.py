"""Linear probes of hue, orientation, frequency and class from the filters of each group."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from analysis.nulls import CHANCE, RANDOM_SETS
from analysis.probes import PooledResponses, group_probes, image_targets
from analysis.responses import Input, collect
from experiments.measure.context import MeasureContext
from experiments.measure.groupings import first_split_layer, input_groups
from experiments.measure.table import Item, Note, Value

TARGETS = ("hue", "orientation", "frequency")


def measure_probes(context: MeasureContext) -> Iterator[Item]:
    """Yield the scores of probes on the groups that read the first layer whose filters several groups read.

    The measures are ``probe_<target>_group_<g>``, g from 1. The nulls are a guess, and random sets of as many filters
    from all groups. Each half of the images tests the probes that the other half fitted. Nothing without draws.
    """
    split, images, draws = first_split_layer(context.wiring), context.images, context.options.draws
    if not draws or split is None:
        return
    layer, reader = split
    features = collect(context.network, images.test(), {Input(reader): PooledResponses()})[Input(reader)].features
    measured = image_targets(x.clamp(0, 1) for x in images.plain())  # hues that were turned may leave the cube
    targets: dict[str, np.ndarray] = {name: measured[name] for name in TARGETS}
    if context.has_classes:
        targets["class"] = images.labels.numpy()
    for target, values in targets.items():
        try:
            probes = group_probes(features, input_groups(context.wiring[reader]), {target: values}, draws=draws)
        except ValueError as error:
            yield Note(f"probe_{target}", str(error), layer)
            continue
        for probe in probes:
            measure = f"probe_{target}_group_{probe.group + 1}"
            yield Value(measure, probe.score, probe.metric, layer)
            yield Value(measure, probe.chance, probe.metric, layer, CHANCE)
            yield Value(measure, float(probe.null.mean()), probe.metric, layer, RANDOM_SETS)
            if probe.note or probe.dead:
                dead = f"{probe.dead} of {probe.filters} filters are dead" if probe.dead else ""
                yield Note(measure, "; ".join(filter(None, [probe.note, dead])), layer)
