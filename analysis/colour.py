"""Colour selectivity of filters, from the weights of a first layer and from the responses of any layer.

Legend: N images, O filters, C channels, H W space, K kernel, M crops. Filters are weights (O, 3, K, K) on RGB inputs.

A filter that never left its initialisation is RGB noise. Two thirds of the energy of noise lie off the grey axis, so
noise looks coloured. ``learned`` is the rule, stated beforehand, that leaves such filters out. ``smoothness`` and
``change_from_initialisation`` check this rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import uniform_filter
from torch import Tensor, nn

from gconv.conv import GroupedConv2d
from gconv.shuffle import ChannelPermutation, ChannelShuffle

# Share of noise filters that are less concentrated than a filter must be to count as learned.
NOISE_LEFT_OUT = 0.99
NOISE_DRAWS = 4000

# The plane off the grey axis: red against green, and yellow against blue.
CHROMA_AXES_2C = np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2], [6]])
GREY = 1e-12  # share of a filter's energy, below which it is rounding


def colour_index(filters_O3KK: ArrayLike) -> NDArray[np.float64]:
    """Return the share of each filter's energy off the grey axis (1, 1, 1)/√3: 0 for a grey filter, 2/3 for RGB noise.

    Returns:
        (O,); NaN for a filter that is zero throughout.

    Raises:
        ValueError: the filters do not read three channels.
    """
    filters = _rgb(filters_O3KK)
    energy = (filters**2).sum((1, 2, 3))
    grey = 3 * (filters.mean(1) ** 2).sum((1, 2))
    return 1 - np.divide(grey, energy, out=np.full(len(filters), np.nan), where=energy > 0)


def smoothness(filters_O3KK: ArrayLike) -> NDArray[np.float64]:
    """Return the share of each filter's energy that a 3 × 3 mean leaves: 0.1 for noise, near 1 for broad structure.

    Returns:
        (O,); NaN for a filter that is zero throughout.
    """
    filters = _rgb(filters_O3KK)
    energy = (filters**2).sum((1, 2, 3))
    kept = (uniform_filter(filters, 3, axes=(2, 3), mode="constant") ** 2).sum((1, 2, 3))
    return np.divide(kept, energy, out=np.full(len(filters), np.nan), where=energy > 0)


def concentration(filters_O3KK: ArrayLike) -> NDArray[np.float64]:
    """Return Σ p² of each filter, p the shares of its energy at each spatial frequency: large if few of them hold it.

    1 for a uniform patch of any colour, ½ for a grating of whole periods, little above 1/K² for noise.

    Returns:
        (O,); NaN for a filter that is zero throughout.
    """
    power = (np.abs(np.fft.fft2(_rgb(filters_O3KK))) ** 2).sum(1).reshape(len(filters_O3KK), -1)  # type: ignore[arg-type]
    total = power.sum(1, keepdims=True)
    return (np.divide(power, total, out=np.full_like(power, np.nan), where=total > 0) ** 2).sum(1)


# Share of its energy that a filter must have learned to count.
LEARNED_ENERGY = 0.5


def learned(filters_O3KK: ArrayLike) -> NDArray[np.bool_]:
    """Return True for filters that are not noise (O,): more concentrated than 99% of white-noise filters of their size.

    The rule needs no initial weights. It does not depend on colour or frequency, so it does not bias a comparison of
    these. (A rule by smoothness would, because fine gratings, which are mostly grey, are not smooth.) One in a hundred
    filters that never left their initialisation passes. A kernel of 1 × 1 has no spatial structure: all filters pass.
    """
    filters = _rgb(filters_O3KK)
    if filters.shape[2:] == (1, 1):
        return np.abs(filters).sum((1, 2, 3)) > 0
    return concentration(filters) > _noise_concentration(*filters.shape[2:])


@cache
def _noise_concentration(height: int, width: int) -> float:
    noise = np.random.default_rng(0).normal(size=(NOISE_DRAWS, 3, height, width))
    return float(np.quantile(concentration(noise), NOISE_LEFT_OUT))


@dataclass(frozen=True)
class Change:
    """Distance of each filter from its initialisation.

    Attributes:
        distance: (O,) |w − w0| / |w0|. Weight decay alone takes it to 1.
        correlation: (O,) correlation of w and w0 over the weights: 1 for a filter that was only scaled, about 0 for a
            new one. NaN if w or w0 is constant.
    """

    distance: NDArray[np.float64]
    correlation: NDArray[np.float64]


def change_from_initialisation(trained: ArrayLike, initial: ArrayLike) -> Change:
    """Return the change of each filter between two states of the same layer, (O, …) both.

    Raises:
        ValueError: the shapes differ, or a filter started from zero.
    """
    end, start = np.asarray(trained, dtype=np.float64), np.asarray(initial, dtype=np.float64)
    if end.shape != start.shape or end.ndim < 2:
        raise ValueError(f"filters of shapes {end.shape} and {start.shape}: must be of the same layer")
    end, start = end.reshape(len(end), -1), start.reshape(len(start), -1)
    if not start.any(1).all():
        raise ValueError(f"filter {int(np.flatnonzero(~start.any(1))[0])} starts from zero: no relative distance")
    distance = np.linalg.norm(end - start, axis=1) / np.linalg.norm(start, axis=1)
    centred = [side - side.mean(1, keepdims=True) for side in (end, start)]
    size = np.prod([np.linalg.norm(side, axis=1) for side in centred], axis=0)
    scale = np.linalg.norm(end, axis=1) * np.linalg.norm(start, axis=1)
    product = (centred[0] * centred[1]).sum(1)
    return Change(distance, np.divide(product, size, out=np.full(len(end), np.nan), where=size > GREY * scale))


@dataclass(frozen=True)
class LearnedPart:
    """A trained filter without its projection on the filter that it began as: w − (⟨w, w0⟩ / ⟨w0, w0⟩) w0.

    The rest of a random initialisation looks coloured, and the less a filter has grown, the more it is. So colour and
    frequency are measured on the learned part, and a filter counts only if that part has enough of its energy.

    Attributes:
        filters: (O, …) the learned parts.
        energy: (O,) their share of the energy of the filter, 0 … 1; NaN for a filter that is zero throughout.
    """

    filters: NDArray[np.float64]
    energy: NDArray[np.float64]


def learned_part(trained: ArrayLike, initial: ArrayLike) -> LearnedPart:
    """Project the initial filters out of the trained ones, (O, …) both. A filter that began as zero is all learned.

    Raises:
        ValueError: the shapes differ.
    """
    end, start = np.asarray(trained, dtype=np.float64), np.asarray(initial, dtype=np.float64)
    if end.shape != start.shape or end.ndim < 2:
        raise ValueError(f"filters of shapes {end.shape} and {start.shape}: must be of the same layer")
    flat, begun = end.reshape(len(end), -1), start.reshape(len(start), -1)
    square, energy = (begun**2).sum(1), (flat**2).sum(1)
    scale = np.divide((flat * begun).sum(1), square, out=np.zeros(len(flat)), where=square > 0)
    part = flat - scale[:, None] * begun
    share = np.divide((part**2).sum(1), energy, out=np.full(len(flat), np.nan), where=energy > 0)
    return LearnedPart(part.reshape(end.shape), share)


def luminance(filters_O3KK: ArrayLike) -> NDArray[np.float64]:
    """Return the component of each filter along the grey axis (1, 1, 1)/√3, (O, K, K); zero where it is rounding."""
    filters = _rgb(filters_O3KK)
    along = filters.sum(1) / np.sqrt(3)
    rounding = (along**2).sum((1, 2)) <= GREY * (filters**2).sum((1, 2, 3))
    return np.where(rounding[:, None, None], 0.0, along)


@dataclass(frozen=True)
class FirstColour:
    """The axis in colour space, at right angles to grey, along which each filter varies most.

    Attributes:
        angle: (O,) of the axis in degrees, 0 ≤ angle < 180, for red and its opponent are one axis: 0 red against green
            (1, −1, 0), 30 red against cyan, 60 orange against azure, 90 yellow against blue (1, 1, −2), 150 green
            against magenta. 0 for a grey filter.
        explained: (O,) share of the energy off the grey axis that lies on this axis, ½ … 1; at ½ the angle is
            arbitrary. 0 for a grey filter.
        coloured: (O,) False for grey filters, which have no energy off the grey axis.
        planes: (O, K, K) the filter along that axis; zero for a grey filter.
    """

    angle: NDArray[np.float64]
    explained: NDArray[np.float64]
    coloured: NDArray[np.bool_]
    planes: NDArray[np.float64]


def first_colour(filters_O3KK: ArrayLike) -> FirstColour:
    """Return the first singular vector of each filter's weights (3, K · K), projected off the grey axis.

    Raises:
        ValueError: the filters do not read three channels.
    """
    filters = _rgb(filters_O3KK)
    chroma = np.einsum("ac,ochw->oahw", CHROMA_AXES_2C, filters)
    (rr, ry), (_, yy) = np.einsum("oahw,obhw->abo", chroma, chroma)
    coloured = rr + yy > GREY * (filters**2).sum((1, 2, 3))
    # The eigenvectors of a symmetric 2 × 2 matrix in closed form.
    angle = np.where(coloured, np.arctan2(2 * ry, rr - yy) / 2 % np.pi, 0.0)
    energy = (rr + yy + np.hypot(rr - yy, 2 * ry)) / 2
    explained = np.divide(energy, rr + yy, out=np.zeros_like(energy), where=coloured)
    planes = np.einsum("ao,oahw->ohw", coloured * np.stack([np.cos(angle), np.sin(angle)]), chroma)
    return FirstColour(np.degrees(angle), explained, coloured, planes)


# Responses: the colour selectivity index (Rafegas & Vanrell 2018; Rafegas et al. 2020).

Respond = Callable[[Tensor], Tensor]  # images (N, 3, H, W) of values 0 … 1 to responses (N, O, h, w), after the ReLU
UNMOVED = (nn.ReLU, nn.GELU, nn.SiLU, nn.BatchNorm2d, nn.LocalResponseNorm, nn.Dropout, nn.Dropout2d, nn.Identity)


@dataclass(frozen=True)
class ReceptiveField:
    """Pixels that unit (row, column) of a layer reads: ``size`` rows from row · stride − padding on; columns alike."""

    size: int
    stride: int
    padding: int

    def window(self, row: int, column: int) -> tuple[slice, slice]:
        """Return rows and columns of a unit's window, cut at the border of the image."""
        first = [place * self.stride - self.padding for place in (row, column)]
        down, right = (slice(max(start, 0), max(start + self.size, 0)) for start in first)
        return down, right


def receptive_field(layers: Sequence[nn.Module]) -> ReceptiveField:
    """Return the receptive field of the last of consecutive layers, the first of which reads the image.

    Kernel, stride and padding must be the same in height and width, and the padding must be zeros.

    Raises:
        ValueError: a layer whose geometry is not known, or that is not square.
    """
    size, stride, padding = 1, 1, 0
    for layer in layers:
        if isinstance(layer, nn.Sequential):
            inner = receptive_field(list(layer))
            kernel, step, pad = inner.size, inner.stride, inner.padding
        elif isinstance(layer, (*UNMOVED, ChannelShuffle, ChannelPermutation)):
            continue
        elif isinstance(layer, nn.Conv2d | GroupedConv2d | nn.MaxPool2d | nn.AvgPool2d):
            dilation = _side(getattr(layer, "dilation", 1), layer)
            kernel = 1 + dilation * (_side(layer.kernel_size, layer) - 1)
            step = _side(layer.stride, layer)
            named = {"same": (kernel - 1) // 2, "valid": 0}
            pad = named[layer.padding] if isinstance(layer.padding, str) else _side(layer.padding, layer)
        else:
            raise ValueError(f"what {layer} reads is not known: give ReceptiveField(size, stride, padding) instead")
        size, stride, padding = size + (kernel - 1) * stride, stride * step, padding + pad * stride
    return ReceptiveField(size, stride, padding)


@dataclass(frozen=True)
class LargestResponses:
    """Largest responses of each filter, in descending order, at most one per image. All arrays are (O, M)."""

    response: NDArray[np.float64]
    image: NDArray[np.int64]
    row: NDArray[np.int64]
    column: NDArray[np.int64]


class TopResponses:
    """The ``count`` images to which each filter responds most, collected in one pass.

    If two responses are equal, the earlier image is kept. So the result does not depend on the batches.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"count={count}: one crop at least")
        self.count = count
        self.seen = 0
        self._best: list[Tensor] | None = None

    def add(self, responses_NOHW: Tensor) -> None:
        """Add the responses to the next images."""
        x = responses_NOHW.detach()
        peak, place = x.flatten(2).max(2)
        image = torch.arange(self.seen, self.seen + len(x), device=x.device)[:, None].expand_as(peak)
        self.seen += len(x)
        new = [peak, image, place // x.shape[3], place % x.shape[3]]
        if self._best is not None:
            new = [torch.cat(pair) for pair in zip(self._best, new, strict=True)]
        order = new[0].argsort(dim=0, descending=True, stable=True)[: self.count]
        self._best = [part.gather(0, order) for part in new]

    @property
    def top(self) -> LargestResponses:
        """Largest responses so far."""
        if self._best is None:
            raise ValueError("no responses were collected")
        response, *places = (part.T.cpu().numpy() for part in self._best)
        return LargestResponses(response.astype(np.float64), *places)


def grey_version(crop_3HW: ArrayLike) -> NDArray[np.float64]:
    """Return a crop (3, H, W) of values 0 … 1 without colour: its first principal component in the opponent space.

    Opponent space: (R + G + B − 1.5) / 1.5, R − G, (R + G − 2 B) / 2, each −1 … 1. The component keeps its contrast and
    gets the mean brightness of the crop. Its sign makes it brighter where the crop is brighter, or redder if the crop
    has no contrast of brightness. The result is cut to 0 … 1. So a grey crop is its own grey version. (The code of
    Rafegas & Vanrell stretches the component to the full range, with an arbitrary sign. Then a filter for brightness
    prefers the grey version of any crop of low contrast.)
    """
    red, green, blue = np.asarray(crop_3HW, dtype=np.float64)
    opponent = np.stack([(red + green + blue - 1.5) / 1.5, red - green, (red + green - 2 * blue) / 2])
    mean = opponent.mean((1, 2))
    centred = (opponent - mean[:, None, None]).reshape(3, -1)
    axis = np.linalg.eigh(centred @ centred.T)[1][:, -1]
    axis = axis * np.sign(axis[np.abs(axis) > 1e-9][0])
    return np.broadcast_to(np.clip((mean[0] + (axis @ centred).reshape(red.shape) + 1) / 2, 0, 1), (3, *red.shape))


@dataclass(frozen=True)
class ColourSelectivity:
    """Colour selectivity index of each filter; NaN for one that responds to no crop.

    Attributes:
        index: (O,) 1 − Σ grey / Σ colour: 0 if the colour does not matter, 1 if nothing is left without it, below 0 if
            the filter prefers the grey versions.
        clipped: (O,) mean of 1 − grey / colour, each between 0 and 1.
        silent: filters that respond to no crop.
    """

    index: NDArray[np.float64]
    clipped: NDArray[np.float64]
    silent: int


def selectivity_index(colour_OM: ArrayLike, grey_OM: ArrayLike) -> ColourSelectivity:
    """Return the index from the responses to crops and to their grey versions, in the same order.

    A response below zero counts as zero, as after a ReLU. A crop without a response does not count.

    Raises:
        ValueError: the shapes differ, or a response is not finite.
    """
    colour, grey = np.asarray(colour_OM, dtype=np.float64), np.asarray(grey_OM, dtype=np.float64)
    if colour.ndim != 2 or colour.shape != grey.shape or not np.isfinite([colour, grey]).all():
        raise ValueError(f"responses of shapes {colour.shape} and {grey.shape}: must be finite, of the same crops")
    active = colour > 0
    colour, grey = np.where(active, colour, 0), np.where(active, np.maximum(grey, 0), 0)
    with np.errstate(invalid="ignore"):
        index = 1 - grey.sum(1) / colour.sum(1)
        clipped = (1 - np.minimum(grey / np.where(active, colour, 1), 1)).sum(1, where=active) / active.sum(1)
    return ColourSelectivity(index, clipped, int((~active.any(1)).sum()))


@torch.no_grad()
def colour_selectivity(
    respond: Respond,
    images: Callable[[NDArray[np.int64]], Tensor],
    top: LargestResponses,
    field: ReceptiveField,
    batch: int = 64,
) -> ColourSelectivity:
    """Return the colour selectivity index of a layer: each unit's response to its crops, in colour and made grey.

    The crop is made grey inside its image, so that the place of the unit and the padding stay the same. Each crop needs
    a pass of one image.

    Args:
        respond: the network up to the layer, in evaluation mode; it normalises the images itself if needed.
        images: returns the images of the indices (n,) as (n, 3, H, W), values 0 … 1, on the device of the network.
        top: largest responses, as ``TopResponses`` collects them for ``respond`` on the same images.
        field: receptive field of a unit of the layer.
        batch: number of images in one pass.
    """
    grey_OM = np.zeros(top.response.shape)
    asked = np.argwhere(top.response > 0)
    for part in np.array_split(asked, range(batch, len(asked), batch)) if len(asked) else []:
        filters, crops = part.T
        pixels = images(top.image[filters, crops]).clone()
        rows, columns = top.row[filters, crops], top.column[filters, crops]
        for image_3HW, row, column in zip(pixels, rows, columns, strict=True):
            window = (slice(None), *field.window(int(row), int(column)))
            image_3HW[window] = _like(image_3HW, grey_version(image_3HW[window].cpu()))
        answer = respond(pixels)[range(len(part)), filters, rows, columns]
        grey_OM[filters, crops] = answer.double().cpu().numpy()
    return selectivity_index(top.response, grey_OM)


def _like(image_3HW: Tensor, values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.copy()).to(image_3HW.dtype).to(image_3HW.device)


def _side(pair: int | tuple[int, ...], layer: nn.Module) -> int:
    sides = {pair} if isinstance(pair, int) else set(pair)
    if len(sides) > 1:
        raise ValueError(f"{layer}: only layers that are alike either way have one receptive field")
    return sides.pop()


def _rgb(filters_O3KK: ArrayLike) -> NDArray[np.float64]:
    filters = np.asarray(filters_O3KK, dtype=np.float64)
    if filters.ndim != 4 or filters.shape[1] != 3:
        raise ValueError(f"filters of shape {filters.shape} do not read RGB; (O, 3, K, K) do")
    return filters
