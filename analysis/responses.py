"""Collect the responses of layers in one pass over the images, in bounded memory.

Legend: N batch, C D channels of two layers, H W space, S samples. Every pixel is a sample of the filters' responses.
Only the count, the mean and sums of products are kept, in float64, so memory does not grow with the number of images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analysis.evaluation_mode import evaluating

# Samples at a time. On a CPU they stay in the cache while they are shifted and multiplied.
CHUNK = {"cpu": 4096, "cuda": 65536}
ROUNDING = 1e-12  # standard deviation of a channel, relative to its mean, up to which it counts as constant
BLOCK = 128  # columns of the sum of products at a time; blocks below the diagonal are not computed


@dataclass(frozen=True)
class Input:
    """The input of a layer; the name of a layer alone means its output."""

    layer: str


@dataclass(frozen=True, eq=False)
class Refiltered:
    """The output that a layer would have with other filters; the model goes on with its own.

    Attributes:
        layer: name of the layer.
        filters: a module for the layer's input.
    """

    layer: str
    filters: nn.Module


class Accumulator(Protocol):
    """Statistics that are accumulated batch by batch."""

    def add(self, x_NCHW: Tensor, /) -> None:
        """Add the responses of one batch."""


Tap = TypeVar("Tap", bound="str | Input | Refiltered")
Gathered = TypeVar("Gathered", bound=Accumulator)


class ResponseStatistics:
    """Count, mean and covariance of one layer's responses, accumulated batch by batch.

    The mean of the first samples is subtracted before the sums, so that no digits cancel.
    """

    def __init__(self) -> None:
        self.count = 0
        self._shift: Tensor | None = None
        self._sum: Tensor
        self._products: Tensor  # upper triangle

    def add(self, x_NCHW: Tensor) -> None:
        """Add the responses of one batch, (N, C, H, W) or (S, C)."""
        for samples_CS in samples_in_parts(x_NCHW):
            self.add_samples(samples_CS)

    def add_samples(self, x_CS: Tensor, repeats_S: Tensor | None = None) -> Tensor:
        """Add samples (C, S), float64, which it overwrites; sample s counts ``repeats_S[s]`` times, if given.

        Returns:
            (C, S) the samples minus the centre of the sums.
        """
        if self._shift is None:
            self._shift = x_CS.mean(1)
            self._sum = torch.zeros_like(self._shift)
            self._products = x_CS.new_zeros(x_CS.shape[0], x_CS.shape[0])
        x_CS -= self._shift[:, None]
        counted = x_CS if repeats_S is None else x_CS * repeats_S
        self.count += x_CS.shape[1] if repeats_S is None else int(repeats_S.sum())
        self._sum += counted.sum(1)
        for start in range(0, x_CS.shape[0], BLOCK):
            end = start + BLOCK
            self._products[:end, start:end].addmm_(counted[:end], x_CS[start:end].T)
        return x_CS

    @property
    def shift(self) -> Tensor:
        """Centre that the sums are taken about, (C,); float64 on the CPU."""
        if self._shift is None:
            raise ValueError("no responses were collected")
        return self._shift.cpu().double()

    @property
    def mean(self) -> Tensor:
        """(C,) float64 on the CPU."""
        return self.shift + (self._sum / self.count).cpu().double()

    @property
    def covariance(self) -> Tensor:
        """(C, C) float64 on the CPU, with n − 1; exactly 0 for a channel that varies by rounding alone."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two samples, not {self.count}")
        products = self._products.triu() + self._products.triu(1).T
        about_shift = products - torch.outer(self._sum, self._sum) / self.count
        covariance = (about_shift / (self.count - 1)).cpu().double()
        constant = covariance.diag() <= (ROUNDING * self.mean) ** 2
        covariance[constant] = 0.0
        covariance[:, constant] = 0.0
        return covariance


class PairStatistics:
    """Covariances of two layers' responses, and the covariance between them, accumulated batch by batch.

    The smaller map is upsampled to the larger by nearest neighbour (Ioannou 2017), and the pixels of the larger map are
    the samples. No upsampled map is computed: a repeated pixel is multiplied by the sum of the pixels that it covers.

    Attributes:
        first, second: statistics of the first and of the second layer, at the resolution of the larger map.
        distinct: number of samples that are no copies: the pixels of the smaller map.
    """

    def __init__(self) -> None:
        self.first, self.second = ResponseStatistics(), ResponseStatistics()
        self.distinct = 0
        self._cross: Tensor | None = None

    def add(self, x_NCHW: Tensor, y_NDHW: Tensor) -> None:
        """Add the responses of both layers to one batch.

        Raises:
            ValueError: not the same images, or neither map covers the other.
        """
        if x_NCHW.dim() != 4 or y_NDHW.dim() != 4 or len(x_NCHW) != len(y_NDHW):
            shapes = f"{tuple(x_NCHW.shape)} and {tuple(y_NDHW.shape)}"
            raise ValueError(f"responses of shapes {shapes} must be maps (N, C, H, W) of the same images")
        if x_NCHW.shape[2] < y_NDHW.shape[2] or x_NCHW.shape[3] < y_NDHW.shape[3]:
            cross_DC = self._add(y_NDHW, x_NCHW, self.second, self.first)
            cross_CD = cross_DC.T
        else:
            cross_CD = self._add(x_NCHW, y_NDHW, self.first, self.second)
        self._cross = cross_CD if self._cross is None else self._cross + cross_CD

    def _add(self, large: Tensor, small: Tensor, of_large: ResponseStatistics, of_small: ResponseStatistics) -> Tensor:
        rows, columns = (_covered(small.shape[axis], large.shape[axis], large) for axis in (2, 3))
        repeats = torch.outer(rows.sum(1), columns.sum(1)).flatten()
        cross = rows.new_zeros(large.shape[1], small.shape[1])
        step = _images_at_a_time(large)
        for part, small_part in zip(large.detach().split(step), small.detach().split(step), strict=True):
            x_CNHW = of_large.add_samples(_samples(part)).unflatten(1, (len(part), *part.shape[2:]))
            y_DS = of_small.add_samples(_samples(small_part), repeats.repeat(len(part)))
            cross += (rows @ (x_CNHW @ columns.T)).flatten(1) @ y_DS.T
            self.distinct += y_DS.shape[1]
        return cross

    @property
    def count(self) -> int:
        """Samples: pixels of the larger map."""
        return self.first.count

    @property
    def cross_covariance(self) -> Tensor:
        """(C, D) float64 on the CPU, with n − 1."""
        if self._cross is None or self.count < 2:
            raise ValueError(f"a covariance needs two samples, not {self.count}")
        about_shift = self._cross - torch.outer(self.first._sum, self.second._sum) / self.count
        return (about_shift / (self.count - 1)).cpu().double()


def collect(model: nn.Module, batches: Iterable[Tensor], into: Mapping[Tap, Gathered]) -> dict[Tap, Gathered]:
    """Pass images through a model in evaluation mode, and add outputs and inputs of layers to accumulators.

    Args:
        model: any module, on the device of the batches.
        batches: inputs (N, 3, H, W).
        into: accumulators (``ResponseStatistics()``, ``MomentStatistics()``, …) by the name of a module, or by an
            ``Input`` or a ``Refiltered`` of one. The output of a convolution is the one before its activation.

    Returns:
        The accumulators.

    Raises:
        ValueError: a layer that the model does not have; the message lists its layers.
    """
    with _tapped(model, list(into), lambda layer, x: into[layer].add(x)):
        for batch in batches:
            model(batch)
    return dict(into)


def collect_responses(
    model: nn.Module, batches: Iterable[Tensor], layers: Sequence[str]
) -> dict[str, ResponseStatistics]:
    """Pass images through a model in evaluation mode, and collect statistics of the outputs of some layers.

    Args and raises as ``collect``.
    """
    return collect(model, batches, {layer: ResponseStatistics() for layer in layers})


def collect_pairs(
    model: nn.Module, batches: Iterable[Tensor], pairs: Sequence[tuple[Tap, Tap]]
) -> dict[tuple[Tap, Tap], PairStatistics]:
    """Pass images through a model in evaluation mode, and collect the covariances of pairs of layers.

    Args:
        model, batches: as in ``collect``.
        pairs: pairs of layers, named as in ``collect``.

    Returns:
        The statistics of each pair.

    Raises:
        ValueError: as ``collect``; or the model runs a layer twice on the same images, or not at all.
    """
    layers = list(dict.fromkeys(layer for pair in pairs for layer in pair))
    gathered = {pair: PairStatistics() for pair in pairs}
    seen: dict[Tap, Tensor] = {}

    def keep(layer: Tap, x: Tensor) -> None:
        if layer in seen:
            raise ValueError(f"{layer} runs twice on the same images: which of its responses belong to a pair is open")
        seen[layer] = x.detach().clone()  # the next layer may overwrite it

    with _tapped(model, layers, keep):
        for batch in batches:
            model(batch)
            if missing := [layer for layer in layers if layer not in seen]:
                raise ValueError(f"{missing[0]} does not run when the model does")
            for (first, second), statistics in gathered.items():
                statistics.add(seen[first], seen[second])
            seen.clear()
    return gathered


@contextmanager
def _tapped(model: nn.Module, layers: Sequence[Tap], take: Callable[[Tap, Tensor], None]) -> Iterator[None]:
    """Call ``take`` with the tensor at each layer while open, in evaluation mode and without gradients."""
    modules = _named(model, [_name(layer) for layer in layers])

    def tap(layer: Tap) -> Any:
        module = modules[_name(layer)]
        if isinstance(layer, Input):
            return module.register_forward_pre_hook(lambda _module, inputs: take(layer, inputs[0]))
        if isinstance(layer, Refiltered):
            return module.register_forward_pre_hook(lambda _module, inputs: take(layer, layer.filters(inputs[0])))

        def after(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            take(layer, output)

        return module.register_forward_hook(after)

    handles = [tap(layer) for layer in layers]
    try:
        with evaluating(model), torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _name(layer: str | Input | Refiltered) -> str:
    return layer if isinstance(layer, str) else layer.layer


def _named(model: nn.Module, layers: Sequence[str]) -> dict[str, nn.Module]:
    modules = dict(model.named_modules())
    for layer in layers:
        if layer not in modules:
            raise ValueError(f"no layer {layer!r}; there are: {', '.join(name for name in modules if name)}")
    return {layer: modules[layer] for layer in layers}


def samples_in_parts(x_NCHW: Tensor) -> Iterator[Tensor]:
    """Yield responses (N, C, H, W) or (S, C) as samples (C, S), float64, copied; parts fit into a cache."""
    return (_samples(part) for part in x_NCHW.detach().split(_images_at_a_time(x_NCHW)))


def _images_at_a_time(x_NCHW: Tensor) -> int:
    pixels = max(1, x_NCHW[0, 0].numel()) if len(x_NCHW) else 1
    return max(1, CHUNK.get(x_NCHW.device.type, CHUNK["cpu"]) // pixels)


def _samples(x_NCHW: Tensor) -> Tensor:
    """Return (C, S) float64, a copy, in the order of memory that needs no second copy."""
    x = x_NCHW.cpu() if x_NCHW.device.type == "mps" else x_NCHW  # MPS has no float64
    channels_last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.preserve_format if channels_last else torch.contiguous_format
    return x.movedim(1, 0).to(torch.float64, memory_format=layout, copy=True).flatten(1)


def _covered(small: int, large: int, like: Tensor) -> Tensor:
    """Return the pixels of the larger map that each pixel of the smaller one becomes along one axis, (small, large)."""
    if small > large:
        raise ValueError(
            f"maps of which one is larger down and the other along ({small} and {large}) have no common one"
        )
    device = "cpu" if like.device.type == "mps" else like.device
    pixels = torch.arange(small, dtype=torch.float32, device=device).view(1, 1, small)
    source = F.interpolate(pixels, size=large, mode="nearest").flatten().long()
    return F.one_hot(source, small).T.double()
