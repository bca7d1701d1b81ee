"""Collect layer responses once, in a stream, in bounded memory.

Legend: N batch, C channels, H W space. Every pixel is a sample of the C filters' responses; only the count, the mean
and the C × C sum of products are kept, in float64.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class ResponseStatistics:
    """Count, mean and covariance of one layer's responses, accumulated batch by batch.

    The sums are taken about the mean of the first batch, so that nothing cancels.
    """

    def __init__(self) -> None:
        self.count = 0
        self._shift: Tensor | None = None
        self._sum: Tensor
        self._products: Tensor

    def add(self, x_NCHW: Tensor) -> None:
        """Take in the responses of one batch."""
        x = x_NCHW.detach().movedim(1, -1).flatten(0, -2)
        x = (x.cpu() if x.device.type == "mps" else x).double()  # MPS has no float64
        if self._shift is None:
            self._shift = x.mean(0)
            self._sum = torch.zeros_like(self._shift)
            self._products = x.new_zeros(x.shape[1], x.shape[1])
        x = x - self._shift
        self.count += x.shape[0]
        self._sum += x.sum(0)
        self._products += x.T @ x

    @property
    def mean(self) -> Tensor:
        """(C,) float64 on the CPU."""
        if self._shift is None:
            raise ValueError("no responses were collected")
        return (self._shift + self._sum / self.count).cpu().double()

    @property
    def covariance(self) -> Tensor:
        """(C, C) float64 on the CPU, with n − 1."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two samples, not {self.count}")
        about_shift = self._products - torch.outer(self._sum, self._sum) / self.count
        return (about_shift / (self.count - 1)).cpu().double()


@torch.no_grad()
def collect_responses(model: nn.Module, batches: Iterable[Tensor], layers: list[str]) -> dict[str, ResponseStatistics]:
    """One pass over the images in evaluation mode, gathering what the named layers put out.

    Args:
        model: on the device of the batches.
        batches: inputs (N, 3, H, W).
        layers: module names.

    Raises:
        ValueError: a layer that the model does not have; lists those it has.
    """
    modules = dict(model.named_modules())
    for layer in layers:
        if layer not in modules:
            raise ValueError(f"no layer {layer!r}; there are: {', '.join(name for name in modules if name)}")
    gathered = {layer: ResponseStatistics() for layer in layers}
    handles = [
        modules[layer].register_forward_hook(lambda _module, _inputs, output, into=gathered[layer]: into.add(output))
        for layer in layers
    ]
    training = model.training
    model.eval()
    try:
        for batch in batches:
            model(batch)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return gathered
