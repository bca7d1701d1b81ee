"""Networks that learned nothing: filters that replace those of a trained layer, and calibrated batch norms.

Legend: G groups, O filters and I input channels of a group, K kernel.

Two kinds of filters read the inputs of the trained layer:

- random filters: drawn by the initialisation of the layer;
- rotated filters: the trained ones, whose weights over the input channels of each group are multiplied by one random
  orthogonal matrix. Each filter keeps its energy and its spatial spectrum, and the filters of a group keep their Gram
  matrix, so smoothness, growth and redundancy are those of the trained layer. Which channels they read is random.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from analysis.evaluation_mode import evaluating
from analysis.nulls import RANDOM_FILTERS, ROTATED_FILTERS
from gconv.conv import GroupedConv2d


def random_filters(module: nn.Module, seed: int) -> nn.Module:
    """Return a copy of a layer with newly initialised weights, the same on every device.

    Raises:
        ValueError: the layer has no initialisation of its own.
    """
    reset = getattr(module, "reset_parameters", None)
    if reset is None or next(module.parameters(), None) is None:
        raise ValueError(f"a {type(module).__name__} has no weights to draw again; a convolution has")
    device = next(module.parameters()).device
    fresh = copy.deepcopy(module).cpu().eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh.reset_parameters()  # type: ignore[operator]
    return fresh.to(device)


def rotated_filters(module: nn.Module, seed: int) -> nn.Module:
    """Return a copy of a convolution whose filters read random mixtures of the input channels of their group.

    The matrix of each group is drawn uniformly from the orthogonal ones (QR of a Gaussian matrix, Mezzadri 2007).

    Raises:
        ValueError: no two-dimensional convolution, or no group that reads two channels.
    """
    weights = group_weights(module)
    if all(weight.shape[1] < 2 for weight in weights):
        raise ValueError("no group reads two channels: there is nothing to rotate")
    rotated = copy.deepcopy(module).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in group_weights(rotated):
            channels = weight.shape[1]
            gaussian = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
            q, r = torch.linalg.qr(gaussian)
            rotation = (q * r.diagonal().sign()).to(weight.device, weight.dtype)
            weight.copy_(torch.einsum("ij,ojhw->oihw", rotation, weight.clone()))
    return rotated


NULL_FILTERS = {RANDOM_FILTERS: random_filters, ROTATED_FILTERS: rotated_filters}  # by the name of the null


def group_weights(module: nn.Module) -> list[Tensor]:
    """Return views of the weights of each group, (O, I, K, K).

    Raises:
        ValueError: no two-dimensional convolution.
    """
    if isinstance(module, GroupedConv2d):
        return module.group_weights()
    if not isinstance(module, nn.Conv2d):
        raise ValueError(f"a {type(module).__name__} is no two-dimensional convolution")
    return list(module.weight.chunk(module.groups))


def calibrate(model: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """Compute the running statistics of all batch norms from images, and return the model. Nothing else of it changes.

    An untrained network has statistics of 0 and 1, which are not those of its responses. All batches have equal weight.
    Inside the network each batch is normalised by its own statistics, as in training.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return model
    momenta = [norm.momentum for norm in norms]
    with evaluating(model), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.train()
        try:
            for batch in batches:
                model(batch)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    return model
