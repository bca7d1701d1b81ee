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
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from gconv.kernels import aten, inference_weights
from gconv.kernels.geometry import Geometry, geometry_of
from gconv.kernels.new_thread import in_new_thread
from gconv.kernels.packing import Packing, separate_groups

Packings = tuple[Packing, ...]
HEAVY_NUMBERS = 1 << 17  # fewest numbers of a weight whose conversions take longer than Python's share of ``_Training``


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
        if parts.has_heavy_weight(x_NCHW) and _is_trained(x_NCHW, weight, bias):
            return _Training.apply(x_NCHW, weight, bias, parts, activation)
        return parts.conv2d(x_NCHW, weight, bias, activation)

    def input_gradient(self, dy_NOHW: Tensor, weight: Tensor, geometry: Geometry, input_size: Sequence[int]) -> Tensor:
        """Return the gradient of the input, (N, C, H, W)."""
        parts = self.decompose(geometry)
        each = zip(parts.calls, _slices(dy_NOHW, parts.out_channels), parts.weights(weight), strict=True)
        return _joined([_input_gradient(call, dy, whole, weight, input_size) for call, dy, whole in each])

    def weight_gradient(self, dy_NOHW: Tensor, x_NCHW: Tensor, geometry: Geometry) -> Tensor:
        """Return the gradient of the weight: that of all bins, of which the blocks are kept."""
        parts = self.decompose(geometry)
        slices = _slices(dy_NOHW, parts.out_channels), _slices(x_NCHW, parts.in_channels)
        gradients = (_weight_gradient(*each) for each in zip(parts.calls, *slices, strict=True))
        if geometry.is_uniform and not parts.has_zeros:  # filters of one shape, in the memory format that they have
            return next(gradients) if len(parts.calls) == 1 else torch.cat(list(gradients))
        each = zip(parts.calls, gradients, strict=True)
        if geometry.is_uniform or not aten.is_plain(x_NCHW):  # modes and transforms have no copy into a part
            return torch.cat([call.gradient(whole) for call, whole in each]).view(geometry.weight_shape)
        gradient = aten.empty_weight(x_NCHW, geometry)
        for (call, whole), part in zip(each, gradient.split(parts.links), strict=True):
            call.write_gradient(whole, part)
        return gradient


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
        whole, places = self._zeros_for(links), self.places(links.device)
        if is_tap_by_tap(links):
            _taps(whole).index_copy_(1, places, _taps(links))
        else:
            whole.index_copy_(0, places, links)
        return whole.view(self.weight_shape)

    def gradient(self, whole: Tensor) -> Tensor:
        """Return the gradients of connected channel pairs, (L, Kh, Kw), from that of the whole weight."""
        flat = whole.reshape(-1, *self.geometry.kernel_size)
        return flat.index_select(0, self.places(flat.device)) if self.has_zeros else flat

    def write_gradient(self, whole: Tensor, part: Tensor) -> None:
        """Write the gradients of connected channel pairs into ``part``, (L, Kh, Kw), in the order of its memory."""
        if not self.has_zeros:
            part.view(self.weight_shape).copy_(whole)
        elif is_tap_by_tap(part):
            taps = whole.permute(2, 3, 0, 1).reshape(self.taps, -1)
            _taps(part).copy_(taps.index_select(1, self.places(part.device)))
        else:
            part.copy_(self.gradient(whole))

    def _zeros_for(self, links: Tensor) -> Tensor:
        """Return zeros for all pairs, in the order of ``links``: a workspace of this thread, or new ones.

        The workspace keeps its zeros between calls. Every call writes all blocks, so that no call uses an old weight.
        It is not kept on a GPU, where streams would share it, nor with autograd, which would save it, nor in a mode or
        transform, whose tensors would get into it.
        """
        layout = torch.channels_last if is_tap_by_tap(links) else torch.contiguous_format
        if torch.is_grad_enabled() or not aten.is_plain(links):
            return self._zeros(links, layout)
        kept = self._local.__dict__.setdefault("kept", {})
        if (links.dtype, layout) not in kept:
            with torch.inference_mode(False):
                kept[links.dtype, layout] = self._zeros(links, layout)
        return kept[links.dtype, layout]

    def _zeros(self, links: Tensor, layout: torch.memory_format) -> Tensor:
        shape = (1, self.packing.links, *self.geometry.kernel_size)
        return links.new_zeros(shape).contiguous(memory_format=layout).squeeze(0)

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

    def conv2d(self, x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        """Return the forward pass, which torch can differentiate."""
        kept = inference_weights.may_be_kept(weight, x_NCHW, bias, self.geometry)
        weights = self.kept_weights(x_NCHW, weight) if kept else self.weights(weight)
        inputs: Iterable[Tensor] = _slices(x_NCHW, self.in_channels)
        if kept and not self.has_zeros:  # ATen copies a slice, and frees the copy before it makes the next one
            inputs = x_NCHW.split(self.in_channels, 1)
        each = zip(self.calls, inputs, weights, self.biases(bias), strict=True)
        return _joined([_forward(call, x, whole, weight, part, activation) for call, x, whole, part in each])

    def has_heavy_weight(self, x_NCHW: Tensor) -> bool:
        """Return True if no zeros are multiplied, and the weight has more numbers than the images, and many."""
        return not self.has_zeros and self.geometry.numbers >= max(HEAVY_NUMBERS, x_NCHW.numel())

    def biases(self, bias: Tensor | None) -> Sequence[Tensor | None]:
        """Return the bias of each call."""
        return [None] * len(self.calls) if bias is None else bias.split(self.out_channels)

    def weights(self, weight: Tensor) -> list[Tensor]:
        """Return the weight of each call."""
        return [call.weight(part) for call, part in zip(self.calls, self.parts_of(weight), strict=True)]

    def parts_of(self, weight: Tensor) -> Sequence[Tensor]:
        """Return the weights of the connected channel pairs of each call, (L, Kh, Kw).

        Those of equal groups are (O, C/G, Kh, Kw), in any memory format, if no zeros are between them.
        """
        if weight.dim() == 4 and not self.has_zeros:
            return weight.split(self.out_channels) if len(self.calls) > 1 else [weight]
        links = weight if weight.dim() == 3 else weight.reshape(-1, *self.geometry.kernel_size)
        return links.split(self.links) if len(self.calls) > 1 else [links]

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


def is_tap_by_tap(weight: Tensor) -> bool:
    """Return True if a weight (L, Kh, Kw) is stored as (Kh, Kw, L): one block of filters after the other per tap.

    ``.to(memory_format=torch.channels_last)`` of a layer stores it so. The weight of a group is then copied to
    channels_last in runs of whole filters.
    """
    return weight.dim() == 3 and not weight.is_contiguous() and weight.stride(0) == 1


def _taps(weight: Tensor) -> Tensor:
    """Return a view (Kh·Kw, L) of a weight that is stored tap by tap."""
    return weight.permute(1, 2, 0).flatten(0, 1)


def _slices(x: Tensor, channels: list[int]) -> Iterator[Tensor]:
    """Yield the channels of each call, copied just before it, so that they are still in the cache.

    ATen would copy a slice in the forward pass, and again in each backward pass.
    """
    if len(channels) == 1:
        yield x
        return
    if torch._C._are_functorch_transforms_active():  # which have no rule for a copy in another memory format
        yield from x.split(channels, 1)
        return
    layout = torch.channels_last if aten.is_channels_last(x) else torch.contiguous_format
    for part in x.split(channels, 1):
        yield part.contiguous(memory_format=layout)


def _joined(parts: list[Tensor]) -> Tensor:
    """Return the results of all calls as one tensor."""
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


def _is_trained(*tensors: Tensor | None) -> bool:
    """Return True if autograd records a call with these plain tensors on a CPU."""
    given = [t for t in tensors if t is not None]
    return torch.is_grad_enabled() and any(t.requires_grad for t in given) and all(map(aten.is_plain, given))


class _Training(Function):
    """Calls without zeros. The backward pass computes both gradients of a call together, from one copy of each slice.

    Weights are made channels_last once, for both passes, and the gradient is written where it belongs, in the order of
    the weight. If the backward pass is itself differentiated, torch differentiates the forward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, parts: Decomposition, activation: str
    ) -> Tensor:
        layout = torch.channels_last if aten.is_channels_last(x) else torch.contiguous_format
        weights = [whole.contiguous(memory_format=layout) for whole in parts.weights(weight)]
        inputs, outputs = [], []
        each = zip(parts.calls, _slices(x, parts.in_channels), weights, parts.biases(bias), strict=True)
        for call, part, whole, bias_part in each:
            inputs.append(part)
            outputs.append(aten.convolve(part, whole, bias_part, call.geometry, call.bins, activation))
        y = _joined(outputs)
        ctx.parts, ctx.activation, ctx.calls = parts, activation, len(weights)
        ctx.save_for_backward(x, weight, bias, *weights, *inputs, *([y] if activation == "relu" else []))
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        parts: Decomposition = ctx.parts
        x, weight, bias, *saved = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            wanted = [t for t, need in zip((x, weight, bias), needed, strict=True) if need]
            y = parts.conv2d(x, weight, bias, ctx.activation)
            gradients = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
            return *(next(gradients) if need else None for need in needed), None, None
        weights, inputs = saved[: ctx.calls], saved[ctx.calls : 2 * ctx.calls]
        if ctx.activation == "relu":
            dy = torch.ops.aten.threshold_backward(dy, saved[-1], 0)
        dweight = torch.empty_like(weight) if needed[1] else weight
        dxs, dbiases = [], []
        outputs = _slices(dy, parts.out_channels)
        each = zip(parts.calls, outputs, inputs, weights, parts.parts_of(dweight), strict=True)
        for call, dy_part, x_part, whole, dweight_part in each:
            dx, dwhole, dbias = aten.gradients(dy_part, x_part, whole, call.geometry, call.bins, needed)
            dxs.append(dx)
            dbiases.append(dbias)
            if needed[1]:
                call.write_gradient(dwhole, dweight_part)
        return (
            _joined(dxs) if needed[0] else None,
            dweight if needed[1] else None,
            torch.cat(dbiases) if needed[2] else None,
            None,
            None,
        )


SEPARATE = DecomposedKernel(separate_groups)
