"""What does each group know? Linear probes of hue, orientation, frequency and class."""

from __future__ import annotations

import numpy as np
from torch import nn

from analysis.probes import PooledResponses, group_probes, image_targets
from analysis.responses import Input, collect
from experiments.measure.groups import first_read_apart, input_grouping
from experiments.measure.images import Shown
from experiments.measure.table import Rows
from gconv.wiring import LayerWiring

TARGETS = ("hue", "orientation", "frequency")


def measure_probes(
    rows: Rows, model: nn.Module, wiring: dict[str, LayerWiring], shown: Shown, draws: int, classes: bool
) -> None:
    """Probe what the groups read of the first layer whose filters are read by several groups.

    Args:
        rows: where the scores go: ``probe_<target>_group_<g>``, beside chance, and beside random sets of as many
            filters whatever their group.
        model: trained.
        wiring: of the model.
        shown: images that the probes learn from, and are tested on in turn.
        draws: of random sets.
        classes: whether the labels of the images mean what the network was trained on.
    """
    apart = first_read_apart(wiring)
    if apart is None:
        return
    layer, reader = apart
    features = collect(model, shown.test(), {Input(reader): PooledResponses()})[Input(reader)].features
    measured = image_targets(x.clamp(0, 1) for x in shown.plain())  # hues that were turned may leave the cube
    targets: dict[str, np.ndarray] = {name: measured[name] for name in TARGETS}
    if classes:
        targets["class"] = shown.labels.numpy()
    for target, values in targets.items():
        try:
            probes = group_probes(features, input_grouping(wiring[reader]), {target: values}, draws=draws)
        except ValueError as error:
            rows.note(f"probe_{target}", str(error), layer)
            continue
        for probe in probes:
            measure = f"probe_{target}_group_{probe.group + 1}"
            rows.add(measure, probe.score, probe.metric, layer)
            rows.add(measure, probe.chance, probe.metric, layer, "chance")
            if draws:
                rows.add(measure, float(probe.null.mean()), probe.metric, layer, "random sets")
            if probe.note or probe.dead:
                dead = f"{probe.dead} of {probe.filters} filters are dead" if probe.dead else ""
                rows.note(measure, "; ".join(filter(None, [probe.note, dead])), layer)
