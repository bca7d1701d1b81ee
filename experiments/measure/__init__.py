"""A trained run to tidy tables, through analysis: one room per question.

``groups.py``: do the filters of a group belong together? ``first_layer.py``: do groups split by colour and frequency?
``lesions.py``: what is a group needed for? ``speed.py``: what does it cost in time? All answers go to ``table.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from experiments.measure.first_layer import measure_first_layer
from experiments.measure.groups import measure_groups
from experiments.measure.lesions import measure_lesions
from experiments.measure.table import Rows
from experiments.runs import Run
from experiments.train import EVALUATION_BATCH, Setting
from gconv.cost import count_cost
from gconv.partition import Partition
from gconv.wiring import trace_wiring

VERSION = 3  # raise when what is measured changes: finished runs are measured again


@dataclass(frozen=True)
class Measures:
    """What is measured on each trained network.

    Args:
        images: test images, evenly spaced, whose responses are collected.
        permutations: draws of each label permutation test.
        draws: of every null that costs a pass over the images: fresh filters, random lesions; 0 leaves these out, and
            with them partitions of dense layers, similarity between groups, and the covariance between layers.
        lesion_images: test images, evenly spaced, on which groups are silenced; 0 leaves that out.
    """

    images: int = 1000
    permutations: int = 2000
    draws: int = 0
    lesion_images: int = 0

    def __post_init__(self) -> None:
        for name, least in (("images", 1), ("permutations", 1), ("draws", 0), ("lesion_images", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"measures.{name}={getattr(self, name)}: must be at least {least}")


def measure_run(
    rows: Rows, run: Run, trained: nn.Module, untrained: nn.Module, setting: Setting, measures: Measures
) -> dict[str, np.ndarray]:
    """Measure one trained network and the same network untrained; returns the arrays that figures need."""
    result = run.result
    assert result is not None
    for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
        rows.add(name, result[name], "fraction" if "accuracy" in name else "nats")
    rows.add("training_time", result["seconds"], "s")
    size = setting.views.crop_size
    cost = count_cost(trained, (3, size, size))
    rows.add("parameters", cost.parameters, "parameters")
    rows.add("macs", cost.macs, "MACs")
    rows.add("activations", cost.activations, "elements")
    wiring = trace_wiring(trained, (3, size, size))
    for name, layer in wiring.items():
        rows.groups[name] = str(Partition(tuple(Counter(layer.computed_by).values())))
    trained.to(setting.device)
    untrained.to(setting.device)

    def images() -> Iterator[Tensor]:
        return (x for x, _ in labelled_images(setting, measures.images))

    arrays = measure_groups(rows, trained, untrained, wiring, images, measures.permutations, measures.draws)
    arrays |= measure_first_layer(rows, trained, untrained, wiring, measures.permutations)
    if measures.lesion_images:
        grey = replace(setting, views=replace(setting.views, colour="grey"))
        shown = [list(labelled_images(view, measures.lesion_images)) for view in (setting, grey)]
        colours = arrays.get("colour_index"), arrays.get("learned")
        arrays |= measure_lesions(rows, trained, wiring, shown[0], shown[1], colours, measures.draws)
    return arrays


def labelled_images(setting: Setting, images: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and labels of so many test images, evenly spaced: they lie class after class."""
    count = len(setting.dataset.test.labels)
    taken = min(images, count)
    index = torch.arange(taken) * count // taken
    for part in index.split(EVALUATION_BATCH):
        x, labels = setting.test_inputs(part)
        yield x.float(), labels
