# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false
"""Weights: packed for the correlations, and their gradient in shares of the pixels, which are added up in order."""

import triton
import triton.language as tl

from gconv.kernels.band.programs.blocks import channels, pixel, tile


@triton.jit
def gather(source, index, target, count, SIZE: tl.constexpr):
    """target[i] = source[index[i]], or 0 where the index is negative."""
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    place = tl.load(index + at, mask=at < count, other=-1)
    present = place >= 0
    value = tl.load(source + tl.where(present, place, 0), mask=present, other=0)
    tl.store(target + at, value, mask=at < count)


@triton.jit(do_not_specialize=["pixels", "share"])
def weight_partials(
    x,
    dy,
    partials,
    tiles,
    jobs,
    packed_size,
    pixels,
    share,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUT_HEIGHT: tl.constexpr,
    OUT_WIDTH: tl.constexpr,
    DY_CHANNELS: tl.constexpr,
    KERNEL_H: tl.constexpr,
    KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr,
    PADDING_H: tl.constexpr,
    PADDING_W: tl.constexpr,
    DILATION_H: tl.constexpr,
    DILATION_W: tl.constexpr,
    READ_ALIGN: tl.constexpr,
    WRITTEN_ALIGN: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    J: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Sums over ``share`` output pixels, for J / K packed blocks of one tile. Grid: (jobs, shares)."""
    job = jobs + tl.program_id(0) * 2
    start, size, band_start, band_size, weight_start = tile(tiles, tl.load(job), READ_ALIGN, WRITTEN_ALIGN)

    j = tl.arange(0, J)
    n = tl.arange(0, N)
    block = tl.load(job + 1) + j // K
    chunks = tl.cdiv(band_size, K)
    tap = block // chunks
    exists = tap < KERNEL_H * KERNEL_W
    # Remainders by subtraction: the compiler sees that these are constant over the K columns of a block.
    x_channel, x_present = channels(band_start, band_size, (block - tap * chunks) * K + j % K, j % READ_ALIGN)
    tap_h = tap // KERNEL_W
    move_h = tap_h * DILATION_H - PADDING_H
    move_w = (tap - tap_h * KERNEL_W) * DILATION_W - PADDING_W
    move = (move_h * WIDTH + move_w) * CHANNELS  # from the pixel of a row to that of a column
    read = exists & x_present
    dy_channel, dy_present = channels(start, size, n, n % WRITTEN_ALIGN)

    sums = tl.zeros((J, N), dtype=tl.float32)
    begin = tl.program_id(1) * share
    m = begin + tl.arange(0, M)
    out_w = m % OUT_WIDTH
    out_h = m // OUT_WIDTH % OUT_HEIGHT
    image = m // (OUT_WIDTH * OUT_HEIGHT)
    for _ in range(begin, tl.minimum(begin + share, pixels), M):
        alive = m < pixels
        h = (out_h * STRIDE_H)[:, None] + move_h[None, :]
        w = (out_w * STRIDE_W)[:, None] + move_w[None, :]
        inside = alive[:, None] & read[None, :]
        if PADDING_H > 0:
            inside = inside & (h >= 0) & (h < HEIGHT)
        if PADDING_W > 0:
            inside = inside & (w >= 0) & (w < WIDTH)
        base = pixel((image * HEIGHT + out_h * STRIDE_H) * WIDTH + out_w * STRIDE_W, WIDE) * CHANNELS
        values = tl.load(
            x + (tl.where(inside, base[:, None] + move[None, :], 0) + x_channel[None, :]),
            mask=inside,
            other=0.0,
            cache_modifier=".ca",
        )
        above = tl.load(
            dy + (pixel(tl.where(alive, m, 0), WIDE)[:, None] * DY_CHANNELS + dy_channel[None, :]),
            mask=alive[:, None] & dy_present[None, :],
            other=0.0,
        )
        sums = tl.dot(tl.trans(values), above, sums, input_precision=PRECISION)
        # M pixels on: carried, since dividing costs more.
        m += M
        out_w += M % OUT_WIDTH
        over = out_w >= OUT_WIDTH
        out_w = tl.where(over, out_w - OUT_WIDTH, out_w)
        out_h += M // OUT_WIDTH % OUT_HEIGHT + over.to(tl.int32)
        over = out_h >= OUT_HEIGHT
        out_h = tl.where(over, out_h - OUT_HEIGHT, out_h)
        image += M // (OUT_WIDTH * OUT_HEIGHT) + over.to(tl.int32)

    place = block[:, None] * (N * K) + n[None, :] * K + (j % K)[:, None]
    tl.store(partials + tl.program_id(1).to(tl.int64) * packed_size + weight_start + place, sums, mask=exists[:, None])


@triton.jit
def add_partials(partials, places, target, count, packed_size, shares, SIZE: tl.constexpr):
    """target[i] = sum over the shares, first to last, of what they have at places[i]."""
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    present = at < count
    source = partials + tl.load(places + at, mask=present, other=0)
    total = tl.zeros((SIZE,), dtype=tl.float32)
    for _ in range(shares):
        total += tl.load(source, mask=present, other=0.0)
        source += packed_size
    tl.store(target + at, total.to(target.dtype.element_ty), mask=present)
