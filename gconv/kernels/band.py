"""Bands of channels in Triton: groups of any sizes as small dense products, in at most two launches and without a copy.

Works on NHWC and writes NHWC slices of one output. ``band_tiles`` says what a program computes, ``band_triton`` how.
Groups packed into one tile share its arithmetic: a NaN or an infinity in one reaches the others' outputs of that tile.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from gconv.geometry import Geometry
from gconv.kernels.aten import is_channels_last
from gconv.kernels.band_tiles import (
    Blocking,
    TileSet,
    Walk,
    blockings,
    tile_table,
    walk,
    weight_index,
    weight_jobs,
    weight_places,
)

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WARPS = 4  # more have been seen to compile loops over flattened taps wrongly (pytorch #173068)
PIXELS = 2**31 - 2**16  # pixel numbers have 32 bits
PROGRAMS = 264  # that fill a large GPU: two for each of 132 multiprocessors
STEP_BYTES = 128  # pixels of a step of the weight gradient, times bytes of a number
LEAST_STEPS = 4  # of a weight gradient program, so that its sums are worth their space
ELEMENTS = 1024  # of a program that gathers
MERGED = 128  # rows of statistics that a program merges


def refuses(geometry: Geometry, dtype: torch.dtype, device_type: str) -> str | None:
    """Why this kernel cannot compute a layer; None if it can."""
    if dtype not in DTYPES:
        return f"it computes in bfloat16, float16 and float32, not in {str(dtype).removeprefix('torch.')}"
    if device_type not in ("cuda", "cpu"):
        return f"it runs on CUDA devices, not on {device_type}"
    if device_type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "it runs on CUDA devices; on the CPU in Triton's interpreter alone (TRITON_INTERPRET=1)"
    return _no_triton(device_type)


@lru_cache
def _no_triton(device_type: str) -> str | None:
    if find_spec("triton") is None:
        return "it needs Triton, which is not installed"
    if device_type == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        return "it needs compute capability 8.0, not {}.{}".format(*torch.cuda.get_device_capability())
    if device_type == "cpu" and not _triton().INTERPRETED:
        return "on the CPU it needs TRITON_INTERPRET=1 before Triton is first imported"
    return None


def configs(geometry: Geometry, dtype: torch.dtype) -> tuple[Blocking, ...]:
    """The blockings worth timing for a layer; the first is used where none is given."""
    return _configs(geometry, dtype.itemsize > 2)


_configs = lru_cache(maxsize=4096)(blockings)


def conv2d(
    x_NCHW: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    activation: str = "none",
    blocking: Blocking | None = None,
) -> Tensor:
    """Grouped convolution with its bias and activation.

    Args:
        x_NCHW: (N, C, H, W) of any strides; copied unless dense in channels_last.
        weight: of ``geometry.weight_shape``.
        bias: (O,) or None.
        geometry: the layer.
        activation: ``"none"`` or ``"relu"``.
        blocking: how the work is cut; ``configs(...)[0]`` where not given.

    Returns:
        (N, O, H', W'), in channels_last where ``x_NCHW`` or ``weight`` is.

    Raises:
        ValueError: 2^31 pixels or so in one call.
    """
    size = geometry.output_size(x_NCHW.shape[2:])
    return _correlate(x_NCHW, weight, bias, geometry, size, False, activation == "relu", blocking)[0]


def conv2d_statistics(
    x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, blocking: Blocking | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Grouped convolution that counts what it writes: as ``conv2d``, and the mean and variance of each channel.

    Each program tells of its own pixels, exactly as they are written; what they tell is merged in a fixed order.

    Returns:
        y (N, O, H', W') as of ``conv2d``; mean and biased variance over N, H' and W', float32 (O,), NaN of nothing.
    """
    size = geometry.output_size(x_NCHW.shape[2:])
    y, partials = _correlate(x_NCHW, weight, bias, geometry, size, False, False, blocking, True)
    channels, pixels = y.shape[1], y.shape[0] * size[0] * size[1]
    if partials is None:
        nothing = torch.full((channels,), torch.nan, device=y.device)
        return y, nothing, nothing.clone()
    share = (blocking or configs(geometry, x_NCHW.dtype)[0]).pixels
    with _on(y.device):
        while len(partials) > 1:
            rows = -(-len(partials) // MERGED)
            merged = torch.empty((rows, 2, channels), dtype=torch.float32, device=y.device)
            _triton().merge_statistics[(rows, -(-channels // 32))](
                partials, merged, len(partials), channels, pixels, share, MERGED, 32, num_warps=WARPS
            )
            partials, share = merged, share * MERGED
    mean, squares = partials[0]
    return y, mean, squares / pixels


def input_gradient(
    dy_NOHW: Tensor,
    weight: Tensor,
    geometry: Geometry,
    input_size: Sequence[int],
    blocking: Blocking | None = None,
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


def weight_gradient(dy_NOHW: Tensor, x_NCHW: Tensor, geometry: Geometry, blocking: Blocking | None = None) -> Tensor:
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
    blocking = blocking or configs(geometry, dtype)[0]
    _check_pixels(dy_NOHW.shape)
    _check_pixels(x_NCHW.shape)
    dy, x = (_dense(part, band_triton.INTERPRETED) for part in (dy_NOHW, x_NCHW))
    batch, _, out_height, out_width = dy.shape
    pixels = batch * out_height * out_width
    if pixels == 0:
        return torch.zeros(geometry.weight_shape, dtype=dtype, device=device)
    tables = _tables(geometry, blocking, False, device)
    step = STEP_BYTES // dtype.itemsize
    shares = -(-PROGRAMS // sum(jobs.shape[0] for jobs in tables.jobs))
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
                step,
                tile_set.width,
                tile_set.depth,
                tile_set.columns(tables.taps),
                _precision(dtype),
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
    blocking: Blocking | None,
    statistics: bool = False,
) -> tuple[Tensor, Tensor | None]:
    band_triton = _triton()
    dtype, device = read_NCHW.dtype, read_NCHW.device
    blocking = blocking or configs(geometry, dtype)[0]
    written = (geometry.in_groups if transposed else geometry.out_groups).channels
    written_shape = torch.Size((read_NCHW.shape[0], written, *size))
    _check_pixels(read_NCHW.shape)
    _check_pixels(written_shape)
    x = _dense(read_NCHW, band_triton.INTERPRETED)
    batch, channels, height, width = x.shape
    y = torch.empty(written_shape, dtype=x.dtype, device=device, memory_format=torch.channels_last)
    partials = None
    if y.numel():
        tables = _tables(geometry, blocking, transposed, device)
        phases, count, (rows, columns) = _phases(geometry, size, transposed, device)
        packed = torch.empty(tables.packed_size, dtype=x.dtype, device=device)
        pixel_blocks = -(-batch * count // blocking.pixels)
        if statistics:
            partials = torch.empty((pixel_blocks, 2, written), dtype=torch.float32, device=device)
        with _on(device):
            band_triton.gather[(-(-tables.packed_size // ELEMENTS),)](
                weight.contiguous(), tables.index, packed, tables.packed_size, ELEMENTS, num_warps=WARPS
            )
            for tile_set, tiles in zip(tables.sets, tables.rows, strict=True):
                band_triton.correlate[(pixel_blocks * len(tile_set.tiles), phases.shape[0])](
                    x,
                    packed,
                    packed if bias is None else bias,
                    y,
                    y if partials is None else partials,
                    tiles,
                    phases,
                    len(tile_set.tiles),
                    batch,
                    height,
                    width,
                    channels,
                    *size,
                    written,
                    rows.read_step,
                    columns.read_step,
                    rows.write_step,
                    columns.write_step,
                    rows.tap_step * geometry.kernel_size[1],
                    columns.tap_step,
                    rows.move,
                    columns.move,
                    tile_set.read_align,
                    tile_set.written_align,
                    blocking.pixels,
                    tile_set.width,
                    tile_set.depth,
                    _precision(dtype),
                    bias is not None,
                    relu,
                    statistics,
                    num_warps=WARPS,
                    num_stages=blocking.stages,
                )
    y = y.to(dtype)
    last = is_channels_last(read_NCHW) or (weight.dim() == 4 and is_channels_last(weight))
    return y if last else y.contiguous(), partials


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
def _tables(geometry: Geometry, blocking: Blocking, transposed: bool, device: torch.device) -> _Tables:
    table = tile_table(geometry, blocking, transposed)
    index = weight_index(geometry, table, transposed)

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
        weight_places(index).to(device),
    )


@lru_cache(maxsize=4096)
def _phases(
    geometry: Geometry, size: tuple[int, int], transposed: bool, device: torch.device
) -> tuple[Tensor, int, tuple[Walk, Walk]]:
    """The rows of all phases on the device, the most positions one has in an image, and the walks they come from."""
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
    return torch.tensor(table, dtype=torch.int32, device=device), count, (rows, columns)


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
