"""Bands of channels in Triton: groups of any sizes as small dense products, in at most two launches and without a copy.

Works on NHWC and writes NHWC slices of one output. ``band_tiles`` says what a program computes, ``band_triton`` how.
Groups packed into one tile share its arithmetic: a NaN or an infinity in one reaches the others' outputs of that tile.
"""

from __future__ import annotations

import os
import subprocess
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, wraps
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from gconv.kernels.aten import is_channels_last, mean_and_variance
from gconv.kernels.band_tiles import (
    STEP_BYTES,
    Blocking,
    TileSet,
    blockings,
    tile_table,
    walk,
    weight_index,
    weight_jobs,
    weight_places,
)
from gconv.kernels.choose import forget, kernel_for
from gconv.kernels.geometry import Geometry
from gconv.kernels.kept import in_a_thread

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WARPS = 4  # more have been seen to compile loops over flattened taps wrongly (pytorch #173068)
PIXELS = 2**31 - 2**16  # pixel numbers have 32 bits
PROGRAMS = 4  # of the weight gradient for each multiprocessor: what its registers hold
MULTIPROCESSORS = 132  # of an H100, where nobody counts them
LEAST_STEPS = 4  # of a weight gradient program, so that its sums are worth their space
ELEMENTS = 1024  # of a program that gathers
MERGED = 128  # rows of statistics that a program merges


def refuses(geometry: Geometry, dtype: torch.dtype, device: torch.device | str) -> str | None:
    """Why this kernel cannot compute a layer; None if it can."""
    if dtype not in DTYPES:
        return f"it computes in bfloat16, float16 and float32, not in {str(dtype).removeprefix('torch.')}"
    device = torch.device(device)
    if device.type not in ("cuda", "cpu"):
        return f"it runs on CUDA devices, not on {device.type}"
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "it runs on CUDA devices; on the CPU in Triton's interpreter alone (TRITON_INTERPRET=1)"
    return _no_triton(device) or _failures.get((geometry, dtype, device))


@lru_cache
def _no_triton(device: torch.device) -> str | None:
    if find_spec("triton") is None:
        return "it needs Triton, which is not installed"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs compute capability 8.0, not {}.{}".format(*torch.cuda.get_device_capability(device))
    if device.type == "cpu" and not _triton().INTERPRETED:
        return "on the CPU it needs TRITON_INTERPRET=1 before Triton is first imported"
    return None


def configs(geometry: Geometry, dtype: torch.dtype, device: torch.device | None = None) -> tuple[Blocking, ...]:
    """The blockings worth timing for a layer; the first is used where none is given.

    Args:
        geometry: the layer.
        dtype: that it computes in.
        device: whose shared memory they must fit; any size where not given.
    """
    return _configs(geometry, dtype.itemsize, None if device is None else _shared_memory(device))


@lru_cache(maxsize=4096)
def _configs(geometry: Geometry, itemsize: int, shared_memory: int | None) -> tuple[Blocking, ...]:
    found = blockings(geometry, itemsize)
    return tuple(b for b in found if shared_memory is None or b.shared_bytes(itemsize) <= shared_memory)


@lru_cache
def _shared_memory(device: torch.device) -> int | None:
    """Bytes that a program may have; None where nobody counts."""
    if device.type != "cuda":
        return None
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", None)


@lru_cache
def _programs(device: torch.device) -> int:
    """Programs that fill a device."""
    if device.type != "cuda":
        return PROGRAMS * MULTIPROCESSORS
    return PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count


_failures: dict[tuple[Geometry, torch.dtype, torch.device], str] = {}


def _or_the_next_kernel(op: Callable[..., Any]) -> Callable[..., Any]:
    """Where Triton cannot build the programs of a layer, the layer is refused from then on, and the next kernel taken.

    A blocking that is asked for by name is built or raises what Triton raises.
    """

    @wraps(op)
    def run(*arguments: Any, blocking: Blocking | None = None) -> Any:
        geometry = next(given for given in arguments if isinstance(given, Geometry))
        dtype, device = arguments[0].dtype, arguments[0].device
        if blocking is not None:
            return op(*arguments, blocking=blocking)
        reason = "no blocking fits the device's shared memory"
        for fitting in configs(geometry, dtype, device):
            try:
                return op(*arguments, blocking=fitting)
            except Exception as error:
                if not _cannot_build(error):
                    raise
                reason = " ".join(str(error).split()) or type(error).__name__
                if not _out_of_resources(error):
                    break
        _failures[geometry, dtype, device] = f"Triton cannot build it: {reason[:300]}"
        warnings.warn(
            f"kernel 'band' for {geometry}: {_failures[geometry, dtype, device]}; another is used", stacklevel=2
        )
        forget()
        name = op.__name__.removesuffix("_statistics")
        x = arguments[1] if name == "weight_gradient" else arguments[0]
        input_size = arguments[3] if name == "input_gradient" else x.shape[2:]
        result = getattr(kernel_for(name, geometry, dtype, x, input_size), name)(*arguments)
        return result if name == op.__name__ else (result, *mean_and_variance(result))

    return run


def _cannot_build(error: Exception) -> bool:
    """Whether an error is Triton's while it compiles, or of the C compiler that it calls."""
    from triton.errors import TritonError

    no_compiler = isinstance(error, RuntimeError) and "C compiler" in str(error)
    return no_compiler or isinstance(error, TritonError | subprocess.CalledProcessError | OSError)


def _out_of_resources(error: Exception) -> bool:
    from triton.runtime.errors import OutOfResources

    return isinstance(error, OutOfResources)


@_or_the_next_kernel
def conv2d(
    x_NCHW: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    activation: str = "none",
    *,
    blocking: Blocking,
) -> Tensor:
    """Grouped convolution with its bias and activation.

    Args:
        x_NCHW: (N, C, H, W) of any strides; copied unless dense in channels_last.
        weight: of ``geometry.weight_shape``.
        bias: (O,) or None.
        geometry: the layer.
        activation: ``"none"`` or ``"relu"``.
        blocking: how the work is cut; by name. Where not given, the first of ``configs`` that can be built.

    Returns:
        (N, O, H', W'), in channels_last where ``x_NCHW`` or ``weight`` is.

    Raises:
        ValueError: 2^31 pixels or so in one call.
    """
    size = geometry.output_size(x_NCHW.shape[2:])
    return _correlate(x_NCHW, weight, bias, geometry, size, False, activation == "relu", blocking)[0]


@_or_the_next_kernel
def conv2d_statistics(
    x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, *, blocking: Blocking
) -> tuple[Tensor, Tensor, Tensor]:
    """Grouped convolution that counts what it writes: as ``conv2d``, and the mean and variance of each channel.

    Each program tells of its own pixels, exactly as they are written; what they tell is merged in a fixed order.

    Returns:
        y (N, O, H', W') as of ``conv2d``; mean and biased variance over N, H' and W', float32 (O,), NaN of nothing.
    """
    size = geometry.output_size(x_NCHW.shape[2:])
    y, told = _correlate(x_NCHW, weight, bias, geometry, size, False, False, blocking, True)
    channels, pixels = y.shape[1], y.shape[0] * size[0] * size[1]
    if told is None:
        nothing = torch.full((channels,), torch.nan, device=y.device)
        return y, nothing, nothing.clone()
    partials, counts = told
    with _on(y.device):
        while len(partials) > 1:
            rows = -(-len(partials) // MERGED)
            merged = torch.empty((rows, 2, channels), dtype=torch.float32, device=y.device)
            merged_counts = torch.empty((rows,), dtype=torch.float32, device=y.device)
            _triton().merge_statistics[(rows, -(-channels // 32))](
                partials, counts, merged, merged_counts, len(partials), channels, MERGED, 32, num_warps=WARPS
            )
            partials, counts = merged, merged_counts
    mean, squares = partials[0]
    return y, mean, squares / pixels


@_or_the_next_kernel
def input_gradient(
    dy_NOHW: Tensor,
    weight: Tensor,
    geometry: Geometry,
    input_size: Sequence[int],
    *,
    blocking: Blocking,
) -> Tensor:
    """Gradient by the input: the same correlation with inputs and outputs exchanged.

    Args:
        dy_NOHW: (N, O, H', W') of any strides.
        weight: of ``geometry.weight_shape``.
        geometry: the layer.
        input_size: (H, W) of the input.
        blocking: as in ``conv2d``.

    Returns:
        (N, C, H, W), in channels_last where ``dy_NOHW`` or ``weight`` is.
    """
    height, width = input_size
    return _correlate(dy_NOHW, weight, None, geometry, (height, width), True, False, blocking)[0]


@_or_the_next_kernel
def weight_gradient(dy_NOHW: Tensor, x_NCHW: Tensor, geometry: Geometry, *, blocking: Blocking) -> Tensor:
    """Gradient by the weight: shares of the pixels summed in fp32 side by side, then together in a fixed order.

    Args:
        dy_NOHW: (N, O, H', W') of any strides.
        x_NCHW: (N, C, H, W) of any strides.
        geometry: the layer.
        blocking: as in ``conv2d``.

    Returns:
        Of ``geometry.weight_shape`` and the dtype of ``dy_NOHW``; the same bits every time.
    """
    band_triton = _triton()
    dtype, device = dy_NOHW.dtype, dy_NOHW.device
    _check_pixels(dy_NOHW.shape)
    _check_pixels(x_NCHW.shape)
    dy, x = (_dense(part, band_triton.INTERPRETED) for part in (dy_NOHW, x_NCHW))
    batch, _, out_height, out_width = dy.shape
    pixels = batch * out_height * out_width
    if pixels == 0:
        return torch.zeros(geometry.weight_shape, dtype=dtype, device=device)
    tables = _tables(geometry, blocking, False, device)
    step = STEP_BYTES // dtype.itemsize
    shares = -(-_programs(device) // sum(jobs.shape[0] for jobs in tables.jobs))
    share = max(-(-pixels // (shares * step)), LEAST_STEPS) * step
    shares = -(-pixels // share)
    partials = torch.empty((shares, tables.packed_size), dtype=torch.float32, device=device)
    dweight = torch.empty(geometry.weight_shape, dtype=dy.dtype, device=device)
    with _on(device):
        for tile_set, rows, jobs in zip(tables.sets, tables.rows, tables.jobs, strict=True):
            band_triton.weight_partials[(jobs.shape[0], shares)](
                x,
                dy,
                partials,
                rows,
                jobs,
                tables.packed_size,
                pixels,
                share,
                *x.shape[2:],
                x.shape[1],
                out_height,
                out_width,
                dy.shape[1],
                *geometry.kernel_size,
                *geometry.stride,
                *geometry.padding,
                *geometry.dilation,
                tile_set.read_align,
                tile_set.written_align,
                tile_set.pixels(dtype.itemsize),
                tile_set.width,
                tile_set.depth,
                tile_set.columns(tables.taps),
                _precision(dtype),
                _is_wide(x, dy),
                num_warps=WARPS,
                num_stages=blocking.stages,
            )
        count = dweight.numel()
        band_triton.add_partials[(-(-count // 256),)](
            partials, tables.places, dweight, count, tables.packed_size, shares, 256, num_warps=WARPS
        )
    return dweight.to(dtype)


def _correlate(
    read_NCHW: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    size: tuple[int, int],
    transposed: bool,
    relu: bool,
    blocking: Blocking,
    statistics: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """The result; and, if asked for, what each block of pixels tells of its channels, and how many pixels it has."""
    band_triton = _triton()
    dtype, device = read_NCHW.dtype, read_NCHW.device
    written = (geometry.in_groups if transposed else geometry.out_groups).channels
    written_shape = torch.Size((read_NCHW.shape[0], written, *size))
    _check_pixels(read_NCHW.shape)
    _check_pixels(written_shape)
    x = _dense(read_NCHW, band_triton.INTERPRETED)
    batch, channels, height, width = x.shape
    y = torch.empty(written_shape, dtype=x.dtype, device=device, memory_format=torch.channels_last)
    told = None
    if y.numel():
        tables = _tables(geometry, blocking, transposed, device, weight.stride())
        packed = torch.empty(tables.packed_size, dtype=x.dtype, device=device)
        sizes = (height, width, channels, *size, written)
        if blocking.rows:
            blocks, phases, walk_numbers = _row_blocks(geometry, size, batch, transposed, blocking)
            kernel = band_triton.correlate_rows
        else:
            phase_rows, count, walk_numbers = _phases(geometry, size, transposed, device)
            blocks, phases = -(-batch * count // blocking.pixels), (phase_rows,)
            kernel = band_triton.correlate
        if statistics:
            partials = torch.empty((blocks, 2, written), dtype=torch.float32, device=device)
            told = partials, torch.empty((blocks,), dtype=torch.float32, device=device)
        with _on(device):
            band_triton.gather[(-(-tables.packed_size // ELEMENTS),)](
                weight, tables.index, packed, tables.packed_size, ELEMENTS, num_warps=WARPS
            )
            for tile_set, tiles in zip(tables.sets, tables.rows, strict=True):
                kernel[(blocks * len(tile_set.tiles), *(rows.shape[0] for rows in phases))](
                    x,
                    packed,
                    packed if bias is None else bias,
                    y,
                    *((y, y) if told is None else told),
                    tiles,
                    *phases,
                    len(tile_set.tiles),
                    batch,
                    *sizes,
                    *walk_numbers,
                    tile_set.read_align,
                    tile_set.written_align,
                    *((_columns(size[1], blocking),) if blocking.rows else ()),
                    blocking.pixels,
                    tile_set.width,
                    tile_set.depth,
                    _precision(dtype),
                    _is_wide(x, y),
                    bias is not None,
                    relu,
                    statistics,
                    num_warps=WARPS,
                    num_stages=blocking.stages,
                )
    y = y.to(dtype)
    last = is_channels_last(read_NCHW) or (weight.dim() == 4 and is_channels_last(weight))
    return y if last else y.contiguous(), told


def _columns(width: int, blocking: Blocking) -> int:
    """Columns of a program that computes rows: a power of two that holds the width, if there is room."""
    return min(1 << (width - 1).bit_length(), blocking.pixels)


def _row_blocks(
    geometry: Geometry, size: tuple[int, int], batch: int, transposed: bool, blocking: Blocking
) -> tuple[int, tuple[()], tuple[int, ...]]:
    """Blocks of four rows, no phases, and how rows and columns meet: offsets, columns of the kernel, step, order."""
    (height, width), columns = size, _columns(size[1], blocking)
    blocks = -(-height // 4) * -(-width // columns) * -(-batch // (blocking.pixels // columns))
    (pad_h, pad_w), dilation = geometry.padding, geometry.dilation[1]
    if transposed:
        return blocks, (), (pad_h - 2, pad_w, geometry.kernel_size[1], -dilation, True)
    return blocks, (), (-pad_h, -pad_w, geometry.kernel_size[1], dilation, False)


def _is_wide(*images: Tensor) -> bool:
    """Whether offsets need 64 bits: also those before the image, of a place that is not read."""
    return any(image.numel() + 2 * image.shape[1] * image.shape[2] * image.shape[3] >= 2**31 for image in images)


@dataclass(frozen=True)
class _Tables:
    """A layer's tile table on its device: for each set the tiles and the jobs of the weight gradient."""

    sets: tuple[TileSet, ...]
    taps: int
    packed_size: int
    rows: tuple[Tensor, ...]
    jobs: tuple[Tensor, ...]
    index: Tensor
    places: Tensor


@lru_cache(maxsize=4096)
@in_a_thread
def _tables(
    geometry: Geometry,
    blocking: Blocking,
    transposed: bool,
    device: torch.device,
    weight_strides: tuple[int, ...] | None = None,
) -> _Tables:
    table = tile_table(geometry, blocking, transposed)
    index = weight_index(geometry, table, transposed)
    places = weight_places(index)
    if weight_strides is not None:  # the weight is read as it lies
        offsets = _offsets(geometry.weight_shape, weight_strides)
        index = torch.where(index >= 0, offsets[index.clamp(min=0).long()], -1).int()

    def rows() -> Iterator[Tensor]:
        for tile_set in table.sets:
            yield torch.tensor(
                [(t.start, t.size, t.band_start, t.band_size, t.weight_start) for t in tile_set.tiles],
                dtype=torch.int32,
                device=device,
            )

    return _Tables(
        table.sets,
        table.taps,
        table.packed_size,
        tuple(rows()),
        tuple(torch.tensor(weight_jobs(s, table.taps), dtype=torch.int32, device=device) for s in table.sets),
        index.to(device),
        places.to(device),
    )


def _offsets(shape: Sequence[int], strides: Sequence[int]) -> Tensor:
    """Where each element lies from the first, in the order of its index; int64 (elements,)."""
    offsets = torch.zeros((), dtype=torch.int64)
    for size, stride in zip(shape, strides, strict=True):
        offsets = offsets.unsqueeze(-1) + torch.arange(size) * stride
    return offsets.flatten()


@lru_cache(maxsize=4096)
@in_a_thread
def _phases(
    geometry: Geometry, size: tuple[int, int], transposed: bool, device: torch.device
) -> tuple[Tensor, int, tuple[int, ...]]:
    """The rows of all phases on the device, the most positions one has in an image, and the steps of the walks."""
    rows, columns = (
        walk(written, kernel_size, stride, padding, dilation, transposed)
        for written, kernel_size, stride, padding, dilation in zip(
            size, geometry.kernel_size, geometry.stride, geometry.padding, geometry.dilation, strict=True
        )
    )
    kernel_width = geometry.kernel_size[1]
    table = [
        (first, count, taps, tap * kernel_width, offset, *column)
        for first, count, taps, tap, offset in rows.phases
        for column in columns.phases
    ]
    count = max(row[1] * row[6] for row in table)
    steps = (rows.read_step, columns.read_step, rows.write_step, columns.write_step)
    steps += (rows.tap_step * kernel_width, columns.tap_step, rows.move, columns.move)
    return torch.tensor(table, dtype=torch.int32, device=device), count, steps


def _dense(x_NCHW: Tensor, interpreted: bool) -> Tensor:
    """``x_NCHW`` dense in channels_last. The interpreter multiplies the bits of bfloat16: for it they are widened."""
    if interpreted and x_NCHW.dtype == torch.bfloat16:
        x_NCHW = x_NCHW.float()
    return x_NCHW.contiguous(memory_format=torch.channels_last)


def _precision(dtype: torch.dtype) -> str:
    """tf32 where torch computes fp32 convolutions in it."""
    allowed = torch.backends.cudnn.conv.fp32_precision == "tf32"  # pyright: ignore[reportAttributeAccessIssue]
    return "tf32" if dtype == torch.float32 and allowed else "ieee"


def _check_pixels(shape_NCHW: torch.Size) -> None:
    batch, _, height, width = shape_NCHW
    if batch * height * width > PIXELS:
        raise ValueError(
            f"{batch} images of {height}×{width}: kernel 'band' takes at most {PIXELS} pixels at once; cut the batch"
        )


def _triton() -> Any:
    """The kernels: imported when first needed, so that all else works without Triton."""
    from gconv.kernels import band_triton

    return band_triton


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
