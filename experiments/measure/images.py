"""The images that a network is measured on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from experiments.data.augment import evaluation_batch, normalise
from experiments.data.datasets import Images
from experiments.training.run_context import RunContext

PIXELS_PER_BATCH = 128 * 112**2  # so that large images take no more memory


@dataclass(frozen=True)
class MeasuredImages:
    """Images of a dataset, evenly spaced, since they are sorted by class; centre crops, never augmented.

    Attributes:
        context: dataset, views and device of the run.
        count: maximum number of images.
    """

    context: RunContext
    count: int

    @property
    def size(self) -> int:
        """Height and width of an input in pixels."""
        return self.context.views.crop_size

    @property
    def batch(self) -> int:
        """Images per batch."""
        return max(1, min(128, PIXELS_PER_BATCH // self.size**2))

    def spaced(self, count: int) -> MeasuredImages:
        """Return other images of the same dataset: ``count`` at most, evenly spaced."""
        return replace(self, count=count)

    def grey(self) -> MeasuredImages:
        """Return the same images without colour."""
        return replace(self, context=replace(self.context, views=replace(self.context.views, colour="grey")))

    def in_colour(self) -> MeasuredImages:
        """Return the same images in colour, if the network was trained on grey ones."""
        views = self.context.views
        coloured = replace(views, colour="colour") if views.colour == "grey" else views
        return replace(self, context=replace(self.context, views=coloured))

    def test(self) -> Iterator[Tensor]:
        """Yield inputs (N, 3, h, w) of test images, normalised."""
        return (self.normalised(x) for x in self.plain())

    def training(self) -> Iterator[Tensor]:
        """Yield inputs (N, 3, h, w) of training images, normalised."""
        return (self.normalised(x) for x in self._plain(self.context.dataset.train))

    def labelled(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the inputs of test images with their labels (N,)."""
        labels = self.labels.split(self.batch)
        return ((x, of_x.to(self.context.device)) for x, of_x in zip(self.test(), labels, strict=True))

    def labelled_training(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the inputs of training images, not augmented, with the labels (N,) that were trained on."""
        labels = self.context.dataset.train.labels.cpu()
        of_images = labels[self._index(len(labels))].split(self.batch)
        return ((x, y.to(self.context.device)) for x, y in zip(self.training(), of_images, strict=True))

    @property
    def labels(self) -> Tensor:
        """Labels of the test images, in their order."""
        labels = self.context.dataset.test.labels.cpu()
        return labels[self._index(len(labels))]

    def plain(self) -> Iterator[Tensor]:
        """Yield the test images (N, 3, h, w) with values from 0 to 1."""
        return self._plain(self.context.dataset.test)

    def plain_at(self, places: Tensor) -> Tensor:
        """Return test images (N, 3, h, w) with values from 0 to 1, by their index among the measured ones."""
        images = self.context.dataset.test
        index = self._index(len(images.labels))[places]
        return evaluation_batch(images.pixels, index, self.context.views).to(self.context.device).float() / 255

    def normalised(self, x_NCHW: Tensor) -> Tensor:
        """Return images with values from 0 to 1 as the network takes them, in single precision."""
        dataset = self.context.dataset
        return normalise(x_NCHW, dataset.mean / 255, dataset.std / 255, torch.float32)

    def _plain(self, images: Images) -> Iterator[Tensor]:
        for index in self._index(len(images.labels)).split(self.batch):
            yield (evaluation_batch(images.pixels, index, self.context.views).to(self.context.device).float() / 255)

    def _index(self, available: int) -> Tensor:
        taken = min(self.count, available)
        return torch.arange(taken) * available // taken
