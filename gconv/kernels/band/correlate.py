"""Forward pass and input gradient of the band kernel: one correlation, of the input or of the output's gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gconv.kernels.aten import is_channels_last
from gconv.kernels.band.launch import WARPS, check_pixels, dense, is_wide, launch, on, precision, programs
from gconv.kernels.band.support import or_the_next_kernel
from gconv.kernels.band.tables import phases, tables
from gconv.kernels.band.tiles import Blocking, units
from gconv.kernels.geometry import Geometry

ELEMENTS = 1024  # elements of a program that gathers
MERGED = 128  # rows of statistics that a program merges


@or_the_next_kernel
def conv2d(
    x_NCHW: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    activation: str = "none",
    *,
    blocking: Blocking,
) -> Tensor:
    """Compute the grouped convolution with its bias and activation.

    Args:
        x_NCHW: (N, C, H, W) of any strides; copied unless dense in channels_last.
        weight: tensor of shape ``geometry.weight_shape``, any dtype and strides: it is gathered in that of ``x_NCHW``.
        bias: (O,), of any dtype, or None.
        geometry: the layer.
        activation: ``"none"`` or ``"relu"``.
        blocking: sizes of the blocks; by default the first of ``configs`` that can be built. Pass it by name.

    Returns:
        (N, O, H', W'), in channels_last where ``x_NCHW`` or ``weight`` is.

    Raises:
        ValueError: the images have more pixels than 32-bit indices can number.
    """
    size = geometry.output_size(x_NCHW.shape[2:])
    return _correlate(x_NCHW, weight, bias, geometry, size, False, activation == "relu", blocking)[0]


@or_the_next_kernel
def conv2d_statistics(
    x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, *, blocking: Blocking
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the grouped convolution, and the mean and variance of each channel of its result.

    Each program counts its own pixels, exactly as they are written; the counts are merged in a fixed order.

    Returns:
        y (N, O, H', W') as of ``conv2d``; mean and biased variance over N, H' and W', float32 (O,), NaN of nothing.
    """
    size = geometry.output_size(x_NCHW.shape[2:])
    y, counted = _correlate(x_NCHW, weight, bias, geometry, size, False, False, blocking, True)
    channels, pixels = y.shape[1], y.shape[0] * size[0] * size[1]
    if counted is None:
        nothing = torch.full((channels,), torch.nan, device=y.device)
        return y, nothing, nothing.clone()
    partials, counts = counted
    with on(y.device):
        while len(partials) > 1:
            rows = -(-len(partials) // MERGED)
            merged = torch.empty((rows, 2, channels), dtype=torch.float32, device=y.device)
            merged_counts = torch.empty((rows,), dtype=torch.float32, device=y.device)
            given = partials, counts, merged, merged_counts, len(partials), channels
            launch(programs().merge_statistics, (rows, units(channels, 32)), *given, MERGED, 32, num_warps=WARPS)
            partials, counts = merged, merged_counts
    mean, squares = partials.view(2, channels).unbind()
    return y, mean, squares / pixels


@or_the_next_kernel
def input_gradient(
    dy_NOHW: Tensor,
    weight: Tensor,
    geometry: Geometry,
    input_size: Sequence[int],
    *,
    blocking: Blocking,
) -> Tensor:
    """Return the gradient of the input: the same correlation with inputs and outputs exchanged.

    Args:
        dy_NOHW: (N, O, H', W') of any strides.
        weight: tensor of shape ``geometry.weight_shape``.
        geometry: the layer.
        input_size: (H, W) of the input.
        blocking: as in ``conv2d``.

    Returns:
        (N, C, H, W), in channels_last where ``dy_NOHW`` or ``weight`` is.
    """
    height, width = input_size
    return _correlate(dy_NOHW, weight, None, geometry, (height, width), True, False, blocking)[0]


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
    """Return the result; and, if asked for, the statistics of each block of pixels with its number of pixels."""
    kernels = programs()
    dtype, device = read_NCHW.dtype, read_NCHW.device
    written = (geometry.in_groups if transposed else geometry.out_groups).channels
    written_shape = torch.Size((read_NCHW.shape[0], written, *size))
    check_pixels(read_NCHW.shape)
    check_pixels(written_shape)
    x = dense(read_NCHW, kernels.INTERPRETED)
    batch, channels, height, width = x.shape
    # As in channels_last; by its strides, since Inductor copies what is allocated in a memory format.
    strides = (size[0] * size[1] * written, 1, size[1] * written, written)
    y = torch.empty_strided(written_shape, strides, dtype=x.dtype, device=device)
    counted = None
    if y.numel():
        table = tables(geometry, blocking, transposed, device, weight.stride())
        packed = torch.empty(table.packed_size, dtype=x.dtype, device=device)
        sizes = (height, width, channels, *size, written)
        if blocking.rows:
            blocks, starts, steps = _row_blocks(geometry, size, batch, transposed, blocking)
            kernel = kernels.correlate_rows
        else:
            rows, count, steps = phases(geometry, size, transposed, device)
            blocks, starts = -(-batch * count // blocking.pixels), (rows,)
            kernel = kernels.correlate
        if statistics:
            partials = torch.empty((blocks, 2, written), dtype=torch.float32, device=device)
            counted = partials, torch.empty((blocks,), dtype=torch.float32, device=device)
        with on(device):
            given = weight, table.index, packed, table.packed_size
            launch(kernels.gather, (units(table.packed_size, ELEMENTS),), *given, ELEMENTS, num_warps=WARPS)
            for tile_set, tiles in zip(table.sets, table.rows, strict=True):
                launch(
                    kernel,
                    (blocks * len(tile_set.tiles), *(rows.shape[0] for rows in starts)),
                    x,
                    packed,
                    packed if bias is None else bias,
                    y,
                    *((y, y) if counted is None else counted),
                    tiles,
                    *starts,
                    len(tile_set.tiles),
                    batch,
                    *sizes,
                    *steps,
                    tile_set.read_align,
                    tile_set.written_align,
                    *((_columns(size[1], blocking),) if blocking.rows else ()),
                    blocking.pixels,
                    tile_set.width,
                    tile_set.depth,
                    precision(dtype),
                    is_wide(x, y),
                    bias is not None,
                    relu,
                    statistics,
                    num_warps=WARPS,
                    num_stages=blocking.stages,
                )
    y = y.to(dtype)
    last = is_channels_last(read_NCHW) or (weight.dim() == 4 and is_channels_last(weight))
    return y if last else y.contiguous(), counted


def _columns(width: int, blocking: Blocking) -> int:
    """Return the columns of a program that computes rows: a power of two that holds the width, if there is room."""
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
