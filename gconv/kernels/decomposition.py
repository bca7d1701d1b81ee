"""Grouped convolution as a few uniform ones, which ATen computes: all kernels but the reference and ``band``.

A ``Packing`` assigns neighbouring groups to the bins of one uniform convolution. Inside a bin the weight is
block-diagonal: the blocks are the weights of the groups, and the rest is zero. Zero times infinity is NaN, so the
result is that of separate groups for finite numbers only. If an input is not finite, a CPU computes the groups of the
call one by one. A GPU does not check, because the check would stall it.

One index, computed once per geometry, writes the blocks into the weight and reads them from its gradient. If each bin
holds one group, the call has no zeros, and its weight is a view.
"""

from __future__ import annotations

import math
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from gconv.kernels import aten, inference_weights
from gconv.kernels.geometry import Geometry, geometry_of
from gconv.kernels.new_thread import in_new_thread
from gconv.kernels.packing import Packing, separate_groups

Packings = tuple[Packing, ...]
HEAVY_BYTES = 1 << 18  # least size of a weight that is heavy
HEAVY_RATIO = 4  # least number of its elements, relative to those of the images


class DecomposedKernel:
    """The three functions of a kernel that computes all groups by a few uniform convolutions.

    Args:
        packings: returns the packings for the sizes of input and output groups. Together they hold every group once,
            in order.
    """

    def __init__(self, packings: Callable[[tuple[int, ...], tuple[int, ...]], Packings]) -> None:
        self._packings = packings
        self.decompose = lru_cache(maxsize=1024)(self._decompose)

    def packings(self, geometry: Geometry) -> Packings:
        """Return the groups of each uniform convolution, and their bins."""
        return self._packings(geometry.in_groups.sizes, geometry.out_groups.sizes)

    def _decompose(self, geometry: Geometry) -> Decomposition:
        return Decomposition.of(geometry, self.packings(geometry))

    def conv2d(
        self, x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str = "none"
    ) -> Tensor:
        """Return the forward pass, (N, O, H', W')."""
        parts = self.decompose(geometry)
        kept = inference_weights.may_be_kept(weight, x_NCHW, bias, geometry)
        if kept:
            weights, heavy = parts.kept_weights(x_NCHW, weight), [False] * len(parts.calls)
        else:
            weights, heavy = parts.weights(weight), parts.has_heavy_weights(x_NCHW)
        inputs: Iterable[Tensor] = _slices(x_NCHW, parts.in_channels, heavy)
        if kept and not parts.has_zeros:  # ATen copies a slice, and frees the copy before it makes the next one
            inputs = x_NCHW.split(parts.in_channels, 1)
        biases = [None] * len(weights) if bias is None else bias.split(parts.out_channels)
        each = zip(parts.calls, inputs, weights, biases, strict=True)
        outputs = [_forward(call, x, whole, weight, part, activation) for call, x, whole, part in each]
        return _joined(outputs, heavy)

    def input_gradient(self, dy_NOHW: Tensor, weight: Tensor, geometry: Geometry, input_size: Sequence[int]) -> Tensor:
        """Return the gradient of the input, (N, C, H, W)."""
        parts = self.decompose(geometry)
        heavy = parts.has_heavy_weights(dy_NOHW)
        outputs = _slices(dy_NOHW, parts.out_channels, heavy)
        each = zip(parts.calls, outputs, parts.weights(weight), strict=True)
        gradients = [_input_gradient(call, dy, whole, weight, input_size) for call, dy, whole in each]
        return _joined(gradients, heavy)

    def weight_gradient(self, dy_NOHW: Tensor, x_NCHW: Tensor, geometry: Geometry) -> Tensor:
        """Return the gradient of the weight: that of all bins, of which the blocks are kept."""
        parts = self.decompose(geometry)
        heavy = parts.has_heavy_weights(x_NCHW)
        outputs = _slices(dy_NOHW, parts.out_channels, heavy)
        inputs = _slices(x_NCHW, parts.in_channels, heavy)
        gradients = [_weight_gradient(*each) for each in zip(parts.calls, outputs, inputs, strict=True)]
        if geometry.is_uniform and not parts.has_zeros:  # filters of one shape, in the memory format that they have
            return gradients[0] if len(gradients) == 1 else torch.cat(gradients)
        flat = [call.gradient(part) for call, part in zip(parts.calls, gradients, strict=True)]
        return (flat[0] if len(flat) == 1 else torch.cat(flat)).view(geometry.weight_shape)


@dataclass(frozen=True, eq=False)
class UniformCall:
    """One uniform convolution.

    Attributes:
        packing: the groups that it computes, and their bins.
        geometry: geometry of these groups only.
        first_link: connected channel pairs of the groups before them.
        in_fill, out_fill: channels that each bin holds, without padding.
        in_full, out_full: True if all bins are full, so that no padding is needed.
    """

    packing: Packing
    geometry: Geometry
    first_link: int
    in_fill: list[int]
    out_fill: list[int]
    in_full: bool
    out_full: bool
    _places: dict[torch.device, Tensor | array[int]] = field(default_factory=dict)
    _local: threading.local = field(default_factory=threading.local)

    @classmethod
    def of(cls, geometry: Geometry, packing: Packing) -> UniformCall:
        """Return the call of a packing."""
        first, last = packing.bins[0][0], packing.bins[-1][1]
        cut = geometry.in_groups.sizes[first:last], geometry.out_groups.sizes[first:last]
        window = geometry.kernel_size, geometry.stride, geometry.padding, geometry.dilation
        in_fill, out_fill = ([sum(sizes[a - first : b - first]) for a, b in packing.bins] for sizes in cut)
        full = set(in_fill) == {packing.in_capacity}, set(out_fill) == {packing.out_capacity}
        before = sum(geometry.links[:first])
        return cls(packing, geometry_of(*cut, *window), before, in_fill, out_fill, *full)

    @cached_property
    def links(self) -> int:
        """Connected channel pairs, zeros of the packing excluded."""
        return sum(self.geometry.links)

    @cached_property
    def bins(self) -> int:
        """Groups of the uniform convolution."""
        return len(self.packing.bins)

    @cached_property
    def taps(self) -> int:
        """Numbers of the kernel of a channel pair."""
        return math.prod(self.geometry.kernel_size)

    @cached_property
    def has_zeros(self) -> bool:
        """True if channel pairs that are not connected are multiplied too."""
        return self.links < self.packing.links

    @cached_property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of its weight, zeros included."""
        return (self.bins * self.packing.out_capacity, self.packing.in_capacity, *self.geometry.kernel_size)

    def links_of(self, weight: Tensor) -> Tensor:
        """Return the weights of its connected channel pairs, (L, Kh, Kw), from those of the whole layer."""
        links = weight if weight.dim() == 3 else weight.reshape(-1, *self.geometry.kernel_size)
        return links.narrow(0, self.first_link, self.links)

    def weight(self, links: Tensor) -> Tensor:
        """Return the weight of the uniform convolution.

        Args:
            links: (L, Kh, Kw), the weights of its connected channel pairs, group after group.
        """
        if not self.has_zeros:
            return links.view(self.weight_shape)
        whole = self._workspace(links)
        if whole is None:
            whole = links.new_zeros((self.packing.links, *self.geometry.kernel_size))
        return whole.index_copy_(0, self.places(links.device), links).view(self.weight_shape)

    def gradient(self, whole: Tensor) -> Tensor:
        """Return the gradients of connected channel pairs, (L, Kh, Kw), from that of the whole weight."""
        flat = whole.reshape(-1, *self.geometry.kernel_size)
        return flat.index_select(0, self.places(flat.device)) if self.has_zeros else flat

    def _workspace(self, links: Tensor) -> Tensor | None:
        """Return the workspace of this thread, which keeps its zeros between calls; None if it must not be kept.

        Every call writes all blocks, so that no call uses an old weight. It is not kept on a GPU, where streams would
        share it, nor with autograd, which would save it, nor in a mode or transform, whose tensors would get into it.
        """
        if torch.is_grad_enabled() or not aten.is_plain(links):
            return None
        kept = self._local.__dict__.setdefault("kept", {})
        if links.dtype not in kept:
            with torch.inference_mode(False):
                kept[links.dtype] = torch.zeros((self.packing.links, *self.geometry.kernel_size), dtype=links.dtype)
        return kept[links.dtype]

    def places(self, device: torch.device) -> Tensor:
        """Return the index of each connected channel pair among all pairs of the call, (L,)."""
        if torch._C._len_torch_dispatch_stack():
            return self._compute_places(device)  # tensors created in a mode, such as fake ones, must not be kept
        places = self._places.get(device)
        if places is None:
            # On a CPU an array is kept, not a tensor: a view of it as a tensor costs almost nothing.
            made = in_new_thread(self._compute_places)(device)
            places = self._places[device] = array("q", made.tolist()) if device.type == "cpu" else made
        return torch.frombuffer(places, dtype=torch.int64) if isinstance(places, array) else places

    def _compute_places(self, device: torch.device) -> Tensor:
        packing, places = self.packing, []
        blocks = list(zip(self.geometry.out_groups.sizes, self.geometry.in_groups.sizes, strict=True))
        offset = packing.bins[0][0]
        for number, (first, last) in enumerate(packing.bins):
            row, column = number * packing.out_capacity, 0
            for height, width in blocks[first - offset : last - offset]:
                rows = torch.arange(row, row + height, device=device).view(-1, 1)
                columns = torch.arange(column, column + width, device=device)
                places.append((rows * packing.in_capacity + columns).flatten())
                row, column = row + height, column + width
        return torch.cat(places)


@dataclass(frozen=True, eq=False)
class Decomposition:
    """A grouped convolution as a few uniform ones; together they hold every group once, in order.

    Attributes:
        geometry: geometry of the grouped convolution.
        calls: the uniform convolutions.
        in_channels, out_channels, links: channels and connected pairs of each call.
    """

    geometry: Geometry
    calls: tuple[UniformCall, ...]
    in_channels: list[int]
    out_channels: list[int]
    links: list[int]

    @classmethod
    def of(cls, geometry: Geometry, packings: Packings) -> Decomposition:
        """Return the decomposition with these packings."""
        calls = tuple(UniformCall.of(geometry, packing) for packing in packings)
        channels = [sum(call.in_fill) for call in calls], [sum(call.out_fill) for call in calls]
        return cls(geometry, calls, *channels, [call.links for call in calls])

    @cached_property
    def has_zeros(self) -> bool:
        """True if channel pairs that are not connected are multiplied too."""
        return any(call.has_zeros for call in self.calls)

    def has_heavy_weights(self, images: Tensor) -> list[bool]:
        """Return, for each call, True if channels_last images should be made contiguous, not the weight channels_last.

        ATen would convert the contiguous weight in each pass. With many channels and few pixels, the images cost less.
        """
        light = [False] * len(self.calls)
        if self.geometry.is_uniform or not (aten.is_plain(images) and aten.is_channels_last(images)):
            return light
        pixels = images.shape[0] * images.shape[2] * images.shape[3]
        return [
            call.taps > 1
            and call.packing.links * call.taps * images.itemsize >= HEAVY_BYTES
            and call.packing.links * call.taps >= HEAVY_RATIO * pixels * max(in_channels, out_channels)
            for call, in_channels, out_channels in zip(self.calls, self.in_channels, self.out_channels, strict=True)
        ]

    def weights(self, weight: Tensor) -> list[Tensor]:
        """Return the weight of each call."""
        if weight.dim() == 4 and not self.has_zeros:  # equal groups: filters of one shape, in any memory format
            return list(weight.split(self.out_channels)) if len(self.calls) > 1 else [weight]
        links = weight if weight.dim() == 3 else weight.reshape(-1, *self.geometry.kernel_size)
        parts = links.split(self.links) if len(self.calls) > 1 else [links]
        return [call.weight(part) for call, part in zip(self.calls, parts, strict=True)]

    def kept_weights(self, x: Tensor, weight: Tensor) -> Sequence[Tensor]:
        """Return the weight of each call in the form that is the fastest in inference, kept between calls."""
        last = aten.is_channels_last(x)
        layout = torch.channels_last if last else torch.contiguous_format
        size = (x.shape[0], x.shape[2], x.shape[3])
        uses = tuple(
            aten.use_of_onednn(call.geometry, call.bins, call.weight_shape, x.dtype, size) if last else "no"
            for call in self.calls
        )

        def make(keep: bool) -> tuple[Tensor, ...]:
            made = []
            for call, whole, use in zip(self.calls, self.weights(weight), uses, strict=True):
                if use == "packed" or (use == "by ATen" and keep):
                    made.append(aten.pack(whole, call.geometry, call.bins, size))
                elif keep:
                    made.append(whole.clone(memory_format=layout))
                else:
                    made.append(whole)
            return tuple(made)

        return inference_weights.kept(weight, (self, last, uses), make)


def _slices(x: Tensor, channels: list[int], heavy: list[bool]) -> Iterator[Tensor]:
    """Yield the channels of each call, copied just before it, so that they are still in the cache.

    ATen would copy a slice in the forward pass, and again in each backward pass.
    """
    if len(channels) == 1:
        yield _as_contiguous(x) if heavy[0] else x
        return
    if torch._C._are_functorch_transforms_active():  # which have no rule for a copy in another memory format
        yield from x.split(channels, 1)
        return
    layout = torch.channels_last if aten.is_channels_last(x) else torch.contiguous_format
    for part, is_heavy in zip(x.split(channels, 1), heavy, strict=True):
        yield _as_contiguous(part) if is_heavy else part.contiguous(memory_format=layout)


def _as_contiguous(x: Tensor) -> Tensor:
    """Return channels_last images as contiguous; their gradient is channels_last again."""
    y = x.contiguous()
    if y.requires_grad:
        y.register_hook(lambda dy: dy.contiguous(memory_format=torch.channels_last))
    return y


def _joined(parts: list[Tensor], heavy: list[bool]) -> Tensor:
    """Return the results of all calls as one tensor, those of heavy weights as channels_last again."""
    if any(heavy):
        layout = torch.channels_last
        parts = [part.contiguous(memory_format=layout) if h else part for part, h in zip(parts, heavy, strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _forward(
    call: UniformCall, x: Tensor, whole: Tensor, weight: Tensor, bias: Tensor | None, activation: str
) -> Tensor:
    geometry, packing = call.geometry, call.packing
    if call.has_zeros and not aten.is_finite(x):
        links = call.links_of(weight).view(geometry.weight_shape)
        return SEPARATE.conv2d(x, links, bias, geometry, activation)
    if not call.in_full:
        x = _pad_bins(x, call.in_fill, packing.in_capacity, 1)
    if bias is not None and not call.out_full:
        bias = _pad_bins(bias, call.out_fill, packing.out_capacity, 0)
    y = aten.convolve(x, whole, bias, geometry, call.bins, activation)
    return y if call.out_full else _without_padding(y, call.out_fill, packing.out_capacity)


def _input_gradient(call: UniformCall, dy: Tensor, whole: Tensor, weight: Tensor, input_size: Sequence[int]) -> Tensor:
    geometry, packing = call.geometry, call.packing
    if call.has_zeros and not aten.is_finite(dy):
        links = call.links_of(weight).view(geometry.weight_shape)
        return SEPARATE.input_gradient(dy, links, geometry, input_size)
    if not call.out_full:
        dy = _pad_bins(dy, call.out_fill, packing.out_capacity, 1)
    dx = aten.input_gradient(dy, whole, geometry, call.bins, input_size)
    return dx if call.in_full else _without_padding(dx, call.in_fill, packing.in_capacity)


def _weight_gradient(call: UniformCall, dy: Tensor, x: Tensor) -> Tensor:
    if not call.in_full:
        x = _pad_bins(x, call.in_fill, call.packing.in_capacity, 1)
    if not call.out_full:
        dy = _pad_bins(dy, call.out_fill, call.packing.out_capacity, 1)
    return aten.weight_gradient(dy, x, call.geometry, call.bins, call.weight_shape)


def _pad_bins(x: Tensor, fill: list[int], capacity: int, dim: int) -> Tensor:
    """Append zero channels to every bin that is not full."""
    after = (0, 0) * (x.dim() - 1 - dim)
    parts = zip(x.split(fill, dim), fill, strict=True)
    return torch.cat([F.pad(part, (*after, 0, capacity - size)) for part, size in parts], dim)


def _without_padding(y: Tensor, fill: list[int], capacity: int) -> Tensor:
    """Return the channels of the bins without padding."""
    return torch.cat([part[:, :size] for part, size in zip(y.split(capacity, 1), fill, strict=True)], 1)


SEPARATE = DecomposedKernel(separate_groups)
