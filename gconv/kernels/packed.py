"""Uneven groups packed into one uniform grouped convolution, exactly.

Inside a bin the weight is block-diagonal: the blocks are the groups' weights, the rest is zero and stays zero, so the
result is that of the groups alone. The blocks are put in place, and their gradients taken out, by one index that is
computed once per geometry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from gconv.geometry import Geometry
from gconv.kernels import aten
from gconv.packing import Packing


def conv2d(x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str = "none") -> Tensor:
    """Grouped convolution as one uniform one with the fewest multiplications."""
    return convolve(x_NCHW, weight, bias, _recipe(geometry), activation)


def input_gradient(dy_NOHW: Tensor, weight: Tensor, geometry: Geometry, input_size: Sequence[int]) -> Tensor:
    """Gradient with respect to the input."""
    return convolve_input_gradient(dy_NOHW, weight, _recipe(geometry), input_size)


def weight_gradient(dy_NOHW: Tensor, x_NCHW: Tensor, geometry: Geometry) -> Tensor:
    """Gradient with respect to the weight."""
    return convolve_weight_gradient(dy_NOHW, x_NCHW, _recipe(geometry))


def refuses(geometry: Geometry, dtype: torch.dtype, device: torch.device | str) -> str | None:
    """Nothing."""
    return None


@lru_cache(maxsize=1024)
def _recipe(geometry: Geometry) -> Recipe:
    return Recipe.of(geometry, (geometry.packing,))


@dataclass(frozen=True)
class Call:
    """One uniform convolution.

    Attributes:
        bins, in_capacity, out_capacity: its groups, and the channels of each.
        in_fill, out_fill: channels that each bin really holds.
        in_full, out_full: whether all bins are full, so that nothing is padded.
        links: channel pairs that it multiplies.
    """

    bins: int
    in_capacity: int
    out_capacity: int
    in_fill: list[int]
    out_fill: list[int]
    in_full: bool
    out_full: bool
    links: int


@dataclass(frozen=True, eq=False)
class Recipe:
    """A grouped convolution as a few uniform ones; together they hold every group once, in order.

    Attributes:
        geometry: of the grouped convolution.
        packings, calls: the uniform ones.
        in_channels, out_channels, links: of each call.
        room: shape of the weights of all calls together, zeros included.
    """

    geometry: Geometry
    packings: tuple[Packing, ...]
    calls: tuple[Call, ...]
    in_channels: list[int]
    out_channels: list[int]
    links: list[int]
    room: tuple[int, ...]
    _places: dict[torch.device, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, geometry: Geometry, packings: tuple[Packing, ...]) -> Recipe:
        """Work out once what every call needs."""
        calls = []
        for packing in packings:
            in_fill, out_fill = (
                [sum(cut.sizes[a:b]) for a, b in packing.bins] for cut in (geometry.in_groups, geometry.out_groups)
            )
            full = set(in_fill) == {packing.in_capacity}, set(out_fill) == {packing.out_capacity}
            capacities = packing.in_capacity, packing.out_capacity
            calls.append(Call(len(packing.bins), *capacities, in_fill, out_fill, *full, packing.links))
        channels = [sum(call.in_fill) for call in calls], [sum(call.out_fill) for call in calls]
        links = [call.links for call in calls]
        return cls(geometry, packings, tuple(calls), *channels, links, (sum(links), *geometry.kernel_size))

    def places(self, device: torch.device) -> Tensor:
        """(L,): where each link of the weight lies among the links of all calls, one after the other."""
        if torch._C._len_torch_dispatch_stack():
            return self._compute_places(device)  # what a mode makes, fake tensors say, must not be kept
        places = self._places.get(device)
        if places is None:
            with torch.inference_mode(False):  # an index of inference mode could not be used in training later
                places = self._places[device] = self._compute_places(device)
        return places

    def _compute_places(self, device: torch.device) -> Tensor:
        sizes = list(zip(self.geometry.out_groups.sizes, self.geometry.in_groups.sizes, strict=True))
        places, start = [], 0
        for packing in self.packings:
            for number, (first, last) in enumerate(packing.bins):
                row, column = number * packing.out_capacity, 0
                for height, width in sizes[first:last]:
                    rows = torch.arange(row, row + height, device=device).view(-1, 1)
                    columns = torch.arange(column, column + width, device=device)
                    places.append((start + rows * packing.in_capacity + columns).flatten())
                    row, column = row + height, column + width
            start += packing.links
        return torch.cat(places)


def convolve(x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, recipe: Recipe, activation: str) -> Tensor:
    """Grouped convolution by a recipe."""
    calls, weights = recipe.calls, _block_diagonal(weight, recipe)
    if len(calls) == 1:
        return _forward(x_NCHW, weights[0], bias, recipe.geometry, calls[0], activation)
    parts = x_NCHW.split(recipe.in_channels, 1)
    biases = [None] * len(calls) if bias is None else bias.split(recipe.out_channels)
    together = zip(parts, weights, biases, calls, strict=True)
    return torch.cat([_forward(x, w, b, recipe.geometry, call, activation) for x, w, b, call in together], 1)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, call: Call, activation: str) -> Tensor:
    if not call.in_full:
        x = _pad_bins(x, call.in_fill, call.in_capacity, 1)
    if bias is not None and not call.out_full:
        bias = _pad_bins(bias, call.out_fill, call.out_capacity, 0)
    y = aten.convolve(x, weight, bias, geometry, call.bins, activation)
    return y if call.out_full else _without_padding(y, call.out_fill, call.out_capacity)


def convolve_input_gradient(dy_NOHW: Tensor, weight: Tensor, recipe: Recipe, input_size: Sequence[int]) -> Tensor:
    """Gradient of ``convolve`` with respect to the input."""
    gradients = []
    weights = _block_diagonal(weight, recipe)
    for dy, w, call in zip(dy_NOHW.split(recipe.out_channels, 1), weights, recipe.calls, strict=True):
        if not call.out_full:
            dy = _pad_bins(dy, call.out_fill, call.out_capacity, 1)
        dx = aten.input_gradient(dy, w, recipe.geometry, call.bins, input_size)
        gradients.append(dx if call.in_full else _without_padding(dx, call.in_fill, call.in_capacity))
    return gradients[0] if len(gradients) == 1 else torch.cat(gradients, 1)


def convolve_weight_gradient(dy_NOHW: Tensor, x_NCHW: Tensor, recipe: Recipe) -> Tensor:
    """Gradient of ``convolve`` with respect to the weight: that of all bins, of which the blocks are kept."""
    geometry, gradients = recipe.geometry, []
    outputs, inputs = dy_NOHW.split(recipe.out_channels, 1), x_NCHW.split(recipe.in_channels, 1)
    for dy, x, call in zip(outputs, inputs, recipe.calls, strict=True):
        if not call.in_full:
            x = _pad_bins(x, call.in_fill, call.in_capacity, 1)
        if not call.out_full:
            dy = _pad_bins(dy, call.out_fill, call.out_capacity, 1)
        shape = (call.bins * call.out_capacity, call.in_capacity, *geometry.kernel_size)
        gradient = aten.weight_gradient(dy, x, geometry, call.bins, shape)
        gradients.append(gradient.reshape(-1, *geometry.kernel_size))
    whole = gradients[0] if len(gradients) == 1 else torch.cat(gradients)
    return whole.index_select(0, recipe.places(whole.device)).view(geometry.weight_shape)


def _block_diagonal(weight: Tensor, recipe: Recipe) -> list[Tensor]:
    """Per call (bins · out_capacity, in_capacity, Kh, Kw): each group's weight in its place, zeros elsewhere."""
    kernel_size = recipe.geometry.kernel_size
    blocks = weight if weight.dim() == 3 else weight.reshape(-1, *kernel_size)
    whole = blocks.new_zeros(recipe.room).index_copy_(0, recipe.places(weight.device), blocks)
    if len(recipe.calls) == 1:
        return [whole.view(-1, recipe.calls[0].in_capacity, *kernel_size)]
    parts = zip(whole.split(recipe.links), recipe.calls, strict=True)
    return [part.view(-1, call.in_capacity, *kernel_size) for part, call in parts]


def _pad_bins(x: Tensor, fill: list[int], capacity: int, dim: int) -> Tensor:
    """Append zero channels to every bin that is not full."""
    after = (0, 0) * (x.dim() - 1 - dim)
    parts = zip(x.split(fill, dim), fill, strict=True)
    return torch.cat([F.pad(part, (*after, 0, capacity - size)) for part, size in parts], dim)


def _without_padding(y: Tensor, fill: list[int], capacity: int) -> Tensor:
    """The channels that the bins really hold."""
    return torch.cat([part[:, :size] for part, size in zip(y.split(capacity, 1), fill, strict=True)], 1)
