"""A trained run to tidy tables, through analysis: one room per question.

``groups.py``: do the filters of a group belong together? ``between_layers.py``: and with the group that reads them?
``first_layer.py``: do groups split by colour and frequency? ``probes.py``: what does a group know? ``lesions.py``: what
is it needed for? ``speed.py``: what does it cost in time? ``images.py``: what is shown; all answers go to ``table.py``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from analysis.lesion import class_accuracy
from analysis.null_filters import calibrate
from experiments.measure.between_layers import measure_between_layers
from experiments.measure.first_layer import measure_first_layer
from experiments.measure.groups import measure_groups
from experiments.measure.images import Shown
from experiments.measure.lesions import measure_lesions
from experiments.measure.probes import measure_probes
from experiments.measure.table import Rows
from experiments.store.runs import Run
from experiments.training.run_context import RunContext
from gconv.cost import count_cost
from gconv.partition import Partition
from gconv.wiring import trace_wiring

CLEAN_IMAGES = 10_000  # training images, evenly spaced, of the accuracy without augmentation
VERSION = 7  # raise when what is measured changes: finished runs are measured again


@dataclass(frozen=True)
class Measures:
    """What is measured on each trained network.

    Args:
        images: test images, evenly spaced, whose responses are collected, and as many training images.
        permutations: draws of each label permutation test.
        draws: of every null that costs a pass over the images or a fit: fresh filters, random sets of filters; 0 leaves
            these out, and with them partitions of dense layers, similarity between groups, the covariance between
            layers, and probes.
        lesion_images: test images, evenly spaced, on which groups are silenced; 0 leaves that out.
    """

    images: int = 1000
    permutations: int = 2000
    draws: int = 3
    lesion_images: int = 250

    def __post_init__(self) -> None:
        for name, least in (("images", 1), ("permutations", 1), ("draws", 0), ("lesion_images", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"measures.{name}={getattr(self, name)}: must be at least {least}")


def measure_run(
    rows: Rows, run: Run, trained: nn.Module, untrained: nn.Module, context: RunContext, measures: Measures
) -> dict[str, np.ndarray]:
    """Measure one run of a study, and its network untrained; returns the arrays that figures need."""
    result = run.result
    assert result is not None
    for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
        rows.add(name, result[name], "fraction" if "accuracy" in name else "nats")
    rows.add("training_time", result["seconds"], "s")
    trained_with = context.with_labels(run.seed)
    right, images = class_accuracy(trained.to(context.device), Shown(trained_with, CLEAN_IMAGES).labelled_training())
    rows.add("clean_train_accuracy", right.sum() / images.sum(), "fraction")
    return measure_network(rows, trained, untrained, context, measures)


def measure_network(
    rows: Rows,
    trained: nn.Module,
    untrained: nn.Module,
    context: RunContext,
    measures: Measures,
    classes: bool = True,
    initial_known: bool = True,
) -> dict[str, np.ndarray]:
    """Measure a trained network and the same network untrained, wherever they come from.

    Args:
        rows: where values and notes go.
        trained, untrained: of one architecture.
        context: images, how they are shown, and the device.
        measures: what is measured.
        classes: whether the labels of the images are the classes that the network tells apart; without them groups
            are neither lesioned nor probed for the class.
        initial_known: whether the untrained network is the one that the trained one began as.

    Returns:
        The arrays that figures need.
    """
    size = context.views.crop_size
    cost = count_cost(trained, (3, size, size))
    rows.add("parameters", cost.parameters, "parameters")
    rows.add("macs", cost.macs, "MACs")
    rows.add("activations", cost.activations, "elements")
    wiring = trace_wiring(trained, (3, size, size))
    for name, layer in wiring.items():
        rows.groups[name] = str(Partition(tuple(Counter(layer.computed_by).values())))
    for model in (trained, untrained):
        model.to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    shown, permutations, draws = Shown(context, measures.images), measures.permutations, measures.draws
    calibrate(untrained, shown.training())
    arrays = measure_groups(rows, trained, untrained, wiring, shown, permutations, draws)
    arrays |= measure_first_layer(rows, trained, untrained, wiring, shown, permutations, initial_known)
    if draws:
        arrays |= measure_between_layers(rows, trained, untrained, wiring, shown, draws)
        measure_probes(rows, trained, wiring, shown, draws, classes)
    if measures.lesion_images and classes:
        colours = arrays.get("colour_index"), arrays.get("learned")
        arrays |= measure_lesions(
            rows, trained, wiring, shown.few(measures.lesion_images), colours, draws, permutations
        )
    return arrays
