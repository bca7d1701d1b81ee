"""The outcome of training and the cost of a network: values without a null."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from analysis.lesion import class_accuracy
from experiments.measure.context import MeasureContext
from experiments.measure.images import MeasuredImages
from experiments.measure.table import Item, Value
from experiments.training.run_context import RunContext
from gconv.cost import count_cost

CLEAN_IMAGES = 10_000  # training images, evenly spaced, for the accuracy without augmentation


def training_outcome(result: dict[str, Any], network: nn.Module, run_context: RunContext) -> Iterator[Item]:
    """Yield losses, accuracies and training time of a run, and its accuracy on training images without augmentation.

    Args:
        result: of the run.
        network: trained; moved to the device in place.
        run_context: with the labels that were trained on.
    """
    for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
        yield Value(name, result[name], "fraction" if "accuracy" in name else "nats")
    yield Value("training_time", result["seconds"], "s")
    images = MeasuredImages(run_context, CLEAN_IMAGES).labelled_training()
    right, images_of_class = class_accuracy(network.to(run_context.device), images)
    yield Value("clean_train_accuracy", right.sum() / images_of_class.sum(), "fraction")


def measure_cost(context: MeasureContext) -> Iterator[Item]:
    """Yield parameters, MACs and activations of one image."""
    cost = count_cost(context.network, (3, context.images.size, context.images.size))
    yield Value("parameters", cost.parameters, "parameters")
    yield Value("macs", cost.macs, "MACs")
    yield Value("activations", cost.activations, "elements")
