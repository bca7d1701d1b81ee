"""Simulated networks: filters as training might leave them, without any difference between groups.

Legend: O filters, I input channels of a group, K kernel.

A trained filter is modelled as r · w0 + g · s + n: the rest of its initialisation, a learned smooth part, and noise. No
part depends on the group, except the growth g in one kind of network. Only the last layer is fitted to the labels, so
that accuracies and lesions are meaningful.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from analysis.null_filters import calibrate, group_weights
from analysis.responses import Input, ResponseStatistics, collect
from experiments.measure.images import MeasuredImages
from experiments.models.blocks import Groups, conv_norm_relu
from gconv import Block, GroupedConv2d

RIDGE_PENALTY = 10.0  # of the fit of the last layer


@dataclass(frozen=True)
class Kind:
    """Model of the trained filters of a network.

    Attributes:
        meaning: one line.
        left: r, the rest of the initialisation.
        learned: norm of the smooth part, relative to the initial filter.
        noise: norm of the noise, relative to the initial filter.
        clusters: number of prototypes around which the learned parts of a layer vary; 0 for independent parts.
        uneven: standard deviation of the logarithm of the growth between the groups of a layer, and between filters.
        grey: whether the learned parts of the first layer are grey.
        planted: whether groups differ, in the filters of the first layer that they read and in their weights.
    """

    meaning: str
    left: float = 0.3
    learned: float = 1.5
    noise: float = 0.2
    clusters: int = 0
    uneven: float = 0.0
    grey: bool = False
    planted: bool = False


NULLS = {
    "smooth": Kind("smooth random filters", left=0.0, noise=0.0),
    "clustered": Kind("filters in six clusters that have nothing to do with groups", clusters=6),
    "growth": Kind("filters, and whole groups of them, that have grown unevenly", uneven=0.4),
    "shared": Kind("the initial filters, equal in all networks of a seed, hold most of what is there", 1.0, 1.3),
    "grey": Kind("grey images, and uneven growth", left=0.6, uneven=0.4, grey=True),
}
PLANTED = {
    "planted": Kind(
        "conv1 splits by colour, then by frequency; groups leave out what they have in common", planted=True
    )
}
KINDS = NULLS | PLANTED


def thin_alexnet(groups: Groups, classes: int) -> nn.Module:
    """AlexNet for 32-pixel images: five convolutions; the second, fourth and fifth are grouped, as in the original."""
    sizes = ((3, 32, 7, 1), (32, 48, 3, groups), (48, 48, 3, 1), (48, 48, 3, groups), (48, 32, 3, groups))
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (reads, filters, kernel, cut) in enumerate(sizes, 1):
        parts = conv_norm_relu(
            reads, filters, kernel, stride=2 if number == 1 else 1, padding=kernel // 2, groups=cut, norm="batch"
        )
        layers.update(zip((f"conv{number}", f"norm{number}", f"relu{number}"), parts, strict=True))
        if number == 1:
            layers["pool1"] = nn.MaxPool2d(2)
    layers.update(average=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), classify=nn.Linear(32, classes))
    return Block(layers)


def pretend_training(initial: nn.Module, kind: Kind, rng: np.random.Generator) -> None:
    """Replace the filters of an initialised network, in place, by those of a kind of network."""
    convolutions = [module for module in initial.modules() if isinstance(module, GroupedConv2d | nn.Conv2d)]
    reading = convolutions[1]
    for number, module in enumerate(convolutions):
        weights = group_weights(module)
        grows = np.exp(rng.normal(0, kind.uneven, len(weights))) if kind.uneven else np.ones(len(weights))
        if number == 0:  # one weight tensor, read by several groups
            _change(weights[0], kind, rng, _growth_by_reader(weights[0], reading, kind, rng), rgb=True)
            continue
        prototypes = None
        for weight, growth in zip(weights, grows, strict=True):
            if kind.clusters and (prototypes is None or prototypes.shape[1] != weight.shape[1]):
                prototypes = _smooth(rng, (kind.clusters, *weight.shape[1:]))
            _change(weight, kind, rng, np.full(len(weight), growth), prototypes)
    if kind.planted:
        _plant(group_weights(convolutions[0])[0], group_weights(reading), rng)


def _growth_by_reader(weight: Tensor, reader: nn.Module, kind: Kind, rng: np.random.Generator) -> NDArray:
    sizes = [of_group.shape[1] for of_group in group_weights(reader)]
    if sum(sizes) != len(weight):
        sizes = [len(weight)]
    return np.repeat(np.exp(rng.normal(0, kind.uneven, len(sizes))), sizes)


@torch.no_grad()
def _change(
    weight: Tensor,
    kind: Kind,
    rng: np.random.Generator,
    growth: NDArray,
    prototypes: NDArray | None = None,
    rgb: bool = False,
) -> None:
    """Return r · w0 + g · s + n, with norms relative to those of the initial filters."""
    initial = weight.double().numpy()
    size = np.sqrt((initial**2).sum((1, 2, 3)).mean())
    shape = initial.shape
    if rgb and kind.clusters:
        prototypes = _coloured(_smooth(rng, (kind.clusters, *shape[1:])), rng.uniform(size=kind.clusters))
    if prototypes is not None:
        learned = prototypes[rng.integers(kind.clusters, size=len(weight))] + 0.6 * _smooth(rng, shape)
    else:
        learned = _smooth(rng, shape)
        if rgb:
            saturation = np.zeros(len(weight)) if kind.grey else rng.uniform(size=len(weight))
            learned = _coloured(learned, saturation)
    noise = _unit(rng.normal(size=shape))
    if rgb and kind.grey:
        noise = _coloured(noise, np.zeros(len(weight)))
    scatter = np.exp(rng.normal(0, kind.uneven, len(weight))) if kind.uneven else 1.0
    grown = (growth * scatter)[:, None, None, None] * kind.learned * _unit(learned)
    weight.copy_(torch.from_numpy(kind.left * initial + size * (grown + kind.noise * noise)))


def _unit(filters: NDArray) -> NDArray:
    return filters / np.sqrt((filters**2).sum((1, 2, 3), keepdims=True))


def _smooth(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray:
    """Return (O, I, K, K) of norm 1: noise, blurred with a random width for each filter; not blurred if K is 1."""
    filters = rng.normal(size=shape)
    if shape[-1] > 1:
        filters = np.stack(
            [_blurred(x, width) for x, width in zip(filters, rng.uniform(0.5, 1.5, len(filters)), strict=True)]
        )
    return _unit(filters)


def _blurred(filter_IKK: NDArray, width: float) -> NDArray:
    return gaussian_filter(filter_IKK, (0, width, width), mode="wrap")


def _coloured(filters_O3KK: NDArray, saturation_O: NDArray) -> NDArray:
    """Return the filters with the given fraction of their energy outside of the grey axis."""
    grey = np.repeat(filters_O3KK.mean(1, keepdims=True), 3, axis=1)
    colour = _unit(filters_O3KK - grey)
    share = saturation_O[:, None, None, None]
    return np.sqrt(1 - share) * _unit(grey) + np.sqrt(share) * colour


@torch.no_grad()
def _plant(first: Tensor, readers: list[Tensor], rng: np.random.Generator) -> None:
    """Sort the filters of the first layer by group: colour in the later groups, low frequencies in every other one.

    A dense reader reads two random halves of them by different filters.
    """
    sizes = [of_group.shape[1] for of_group in readers]
    part = np.repeat(np.arange(len(sizes)), sizes) if len(sizes) > 1 else rng.permutation(len(first)) % 2
    parts = part.max() + 1
    saturation = np.where(part >= parts / 2, 0.75, 0.05) + rng.uniform(0, 0.15, len(first))
    widths = np.where(part % 2 == 0, 1.4, 0.7)
    pattern = _unit(np.stack([_blurred(rng.normal(size=first.shape[1:]), width) for width in widths]))
    size = float(first.flatten(1).norm(dim=1).mean())
    first.copy_(torch.from_numpy(size * _coloured(pattern, saturation)))
    if len(readers) == 1:
        opposite = (rng.permutation(len(readers[0])) % 2)[:, None] != part[None, :]
        readers[0][torch.from_numpy(opposite)] *= 0.2


def plant_in_groups(model: nn.Module, images: MeasuredImages) -> None:
    """Make the groups of later layers differ: each leaves out what its inputs share with those of others."""
    for name, module in model.named_modules():
        if isinstance(module, GroupedConv2d) and len(module.geometry.in_groups.sizes) > 1:
            calibrate(model, images.training())
            covariance = collect(model, images.training(), {Input(name): ResponseStatistics()})[Input(name)].covariance
            member = torch.tensor(module.geometry.in_groups.labels)
            with torch.no_grad():
                for group, weight in enumerate(group_weights(module)):
                    across = covariance[member == group][:, member != group]
                    common = torch.linalg.svd(across, full_matrices=False)[0][:, : max(1, len(across) // 4)].float()
                    weight -= torch.einsum("ir,jr,ojhw->oihw", common, common, weight.clone())


def fit_readout(model: nn.Module, images: MeasuredImages) -> float:
    """Calibrate the batch norms, then fit the last linear layer to the labels by ridge regression, on training images.

    Returns the accuracy on test images. A network that ends in a convolution is only calibrated.
    """
    calibrate(model, images.training())
    last = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not last:
        return float("nan")
    (classify,) = last
    features: list[Tensor] = []
    hook = classify.register_forward_pre_hook(lambda _module, inputs: features.append(inputs[0].double()))
    labels = []
    with torch.no_grad():
        for x, of_x in images.labelled_training():
            model(x)
            labels.append(of_x)
        hook.remove()
        x, of_x = torch.cat(features), torch.cat(labels)
        mean = x.mean(0)
        targets = nn.functional.one_hot(of_x, classify.out_features).double()
        gram = (x - mean).T @ (x - mean)
        ridge = RIDGE_PENALTY * gram.diag().mean() / len(x) * torch.eye(len(gram), dtype=torch.float64)
        fitted = torch.linalg.solve(gram + ridge, (x - mean).T @ (targets - targets.mean(0)))
        classify.weight.copy_(fitted.T)
        classify.bias.copy_(targets.mean(0) - mean @ fitted)
        right = [(model(x).argmax(1) == of_x).double() for x, of_x in images.labelled()]
    return float(torch.cat(right).mean())


Builder = Callable[[], nn.Module]


def network_pair(
    build: Builder, kind: Kind, seed: int, stream: int, images: MeasuredImages
) -> tuple[nn.Module, nn.Module]:
    """Return a network of a kind, and the same network at initialisation, given by the seed and the architecture only.

    Args:
        build: makes the architecture.
        kind: kind of the trained network.
        seed: seed of the run.
        stream: number of the variant: networks of one seed differ in everything that they learned.
        images: images for the batch norms and the last layer.
    """
    networks = []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            networks.append(build())
    trained, untrained = networks
    pretend_training(trained, kind, np.random.default_rng([seed, stream]))
    if kind.planted:
        plant_in_groups(trained, images)
    fit_readout(trained, images)
    return trained, untrained


def trained_on(kind: Kind, colour: str) -> Kind:
    """Return the kind of a network trained on images of this colour, if networks trained on colour are of ``kind``."""
    if colour == "grey":
        return replace(kind, grey=True, clusters=0, planted=False, left=max(kind.left, 0.3))
    return replace(kind, planted=kind.planted and colour == "colour")
