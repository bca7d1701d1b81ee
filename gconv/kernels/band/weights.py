"""Weight gradient of the band kernel: the pixels are shared out to programs, and their sums are added up in order."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from gconv.kernels.band.launch import WARPS, check_pixels, dense, is_wide, launch, on, precision, programs
from gconv.kernels.band.support import or_the_next_kernel
from gconv.kernels.band.tables import tables
from gconv.kernels.band.tiles import STEP_BYTES, Blocking, units
from gconv.kernels.geometry import Geometry

PROGRAMS = 4  # per multiprocessor, as many as its registers hold
MULTIPROCESSORS = 132  # those of an H100, for devices that do not report theirs
LEAST_STEPS = 4  # fewest steps of a program; with fewer, its sums cost too much memory


@or_the_next_kernel
def weight_gradient(
    dy_NOHW: Tensor, x_NCHW: Tensor, geometry: Geometry, *, blocking: Blocking, dtype: torch.dtype | None = None
) -> Tensor:
    """Return the gradient of the weight: each program sums a share of the pixels in fp32, in a fixed order in all.

    Args:
        dy_NOHW: (N, O, H', W') of any strides.
        x_NCHW: (N, C, H, W) of any strides.
        geometry: the layer.
        blocking: as in ``conv2d``.
        dtype: of the result; that of ``dy_NOHW`` if not given.

    Returns:
        The gradient, of ``geometry.weight_shape``; every call returns the same bits.
    """
    kernels = programs()
    dtype, device = dtype or dy_NOHW.dtype, dy_NOHW.device
    check_pixels(dy_NOHW.shape)
    check_pixels(x_NCHW.shape)
    dy, x = (dense(part, kernels.INTERPRETED) for part in (dy_NOHW, x_NCHW))
    batch, _, out_height, out_width = dy.shape
    pixels = batch * out_height * out_width
    if pixels == 0:
        return torch.zeros(geometry.weight_shape, dtype=dtype, device=device)
    table = tables(geometry, blocking, False, device)
    itemsize = dy_NOHW.dtype.itemsize
    step = STEP_BYTES // itemsize
    shares = -(-_programs(device) // sum(jobs.shape[0] for jobs in table.jobs))
    share = max(-(-pixels // (shares * step)), LEAST_STEPS) * step
    shares = -(-pixels // share)
    partials = torch.empty((shares, table.packed_size), dtype=torch.float32, device=device)
    dweight = torch.empty(geometry.weight_shape, dtype=torch.promote_types(dy.dtype, dtype), device=device)
    with on(device):
        for tile_set, rows, jobs in zip(table.sets, table.rows, table.jobs, strict=True):
            launch(
                kernels.weight_partials,
                (jobs.shape[0], shares),
                x,
                dy,
                partials,
                rows,
                jobs,
                table.packed_size,
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
                tile_set.pixels(itemsize),
                tile_set.width,
                tile_set.depth,
                tile_set.columns(table.taps),
                precision(dy_NOHW.dtype),
                is_wide(x, dy),
                num_warps=WARPS,
                num_stages=blocking.stages,
            )
        count = dweight.numel()
        given = partials, table.places, dweight, count, table.packed_size, shares
        launch(kernels.add_partials, (units(count, 256),), *given, 256, num_warps=WARPS)
    return dweight.to(dtype)


@lru_cache
def _programs(device: torch.device) -> int:
    """Return the number of programs that fill a device."""
    if device.type != "cuda":
        return PROGRAMS * MULTIPROCESSORS
    return PROGRAMS * torch.cuda.get_device_properties(device).multi_processor_count
