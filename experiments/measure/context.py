"""The context of a measure: a trained network and all that it is compared with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from analysis.null_filters import calibrate
from experiments.measure.images import MeasuredImages
from experiments.measure.options import MeasureOptions
from experiments.measure.table import Item
from experiments.training.run_context import RunContext
from gconv.partition import Partition
from gconv.wiring import LayerWiring, trace_wiring


@dataclass(frozen=True, eq=False)
class MeasureContext:
    """A trained network, the same network untrained, and the images to measure them on.

    Attributes:
        network: the trained network.
        untrained: the same architecture at its initialisation, batch norms calibrated on training images.
        wiring: the groups that compute and read each filter, by convolution.
        images: images of the study.
        options: numbers of images and draws.
        has_classes: True if the labels of the images are the classes of the network. Lesions and the probe of the
            class need them.
        initialisation_known: True if ``untrained`` has the weights that training began with.
    """

    network: nn.Module
    untrained: nn.Module
    wiring: Mapping[str, LayerWiring]
    images: MeasuredImages
    options: MeasureOptions
    has_classes: bool = True
    initialisation_known: bool = True

    @property
    def groups(self) -> dict[str, str]:
        """Partition that computes each layer, as the column ``groups`` of the long table writes it."""
        return {name: str(Partition(tuple(Counter(layer.computed_by).values()))) for name, layer in self.wiring.items()}


Measure = Callable[[MeasureContext], Iterator[Item]]


def prepare(
    network: nn.Module,
    untrained: nn.Module,
    run_context: RunContext,
    options: MeasureOptions,
    has_classes: bool = True,
    initialisation_known: bool = True,
) -> MeasureContext:
    """Trace a network, move it and its untrained twin to the device, and calibrate the twin.

    Args:
        network, untrained: of one architecture; moved in place.
        run_context: images, views and device.
        options: numbers of images and draws.
        has_classes, initialisation_known: as in ``MeasureContext``.

    Raises:
        ValueError: the network cannot be traced.
    """
    images = MeasuredImages(run_context, options.images)
    wiring = trace_wiring(network, (3, images.size, images.size))
    for model in (network, untrained):
        model.to(run_context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    calibrate(untrained, images.training())
    return MeasureContext(network, untrained, wiring, images, options, has_classes, initialisation_known)
