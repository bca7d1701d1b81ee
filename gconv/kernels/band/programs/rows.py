# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false
"""Correlation of three kernel rows at stride 1: four written rows share the six that they read."""

import triton
import triton.language as tl

from gconv.kernels.band.programs.blocks import channels, epilogue, pixel, tile
from gconv.kernels.band.programs.statistics import add_sum, sum_squares


@triton.jit
def _row(
    x,
    base,
    across,
    h,
    channel,
    present,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROW: tl.constexpr,
):
    """Values of one read row, (M, K); zeros outside the image."""
    inside = across & (h + ROW >= 0) & (h + ROW < HEIGHT)
    offset = tl.where(inside, base + ROW * (WIDTH * CHANNELS), 0)
    return tl.load(x + (offset[:, None] + channel[None, :]), mask=inside[:, None] & present[None, :], other=0.0)


@triton.jit(do_not_specialize=["batch"])
def correlate_rows(
    x,
    weight,
    bias,
    y,
    partials,
    counts,
    tiles,
    tile_count,
    batch,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUT_HEIGHT: tl.constexpr,
    OUT_WIDTH: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    OFFSET_H: tl.constexpr,
    OFFSET_W: tl.constexpr,
    TAPS_W: tl.constexpr,
    MOVE_W: tl.constexpr,
    FLIPPED: tl.constexpr,
    READ_ALIGN: tl.constexpr,
    WRITTEN_ALIGN: tl.constexpr,
    COLUMNS: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr,
    STATISTICS: tl.constexpr,
):
    """One tile at four neighbouring rows: three kernel rows, stride and vertical dilation 1. Grid: (blocks · tiles,).

    M positions are the same COLUMNS columns of M / COLUMNS images. Each of the six read rows is loaded once for each
    column of the kernel and step of the band, and feeds up to three written ones: 6 loads where ``correlate`` makes 12.
    FLIPPED: kernel rows meet read rows the other way round, as in the input gradient. Statistics as in ``correlate``.
    """
    number = tl.program_id(0) % tile_count
    start, size, band_start, band_size, weight_start = tile(tiles, number, READ_ALIGN, WRITTEN_ALIGN)
    blocks = weight + weight_start

    block = tl.program_id(0) // tile_count
    row_blocks: tl.constexpr = (OUT_HEIGHT + 3) // 4
    column_blocks: tl.constexpr = (OUT_WIDTH + COLUMNS - 1) // COLUMNS
    row = block % row_blocks * 4
    m = tl.arange(0, M)
    column = block // row_blocks % column_blocks * COLUMNS + m % COLUMNS
    image = block // (row_blocks * column_blocks) * (M // COLUMNS) + m // COLUMNS
    alive = (image < batch) & (column < OUT_WIDTH)
    image = tl.where(alive, image, 0)
    column = tl.where(alive, column, 0)
    h = row + OFFSET_H
    base = pixel((image * HEIGHT + h) * WIDTH + column + OFFSET_W, WIDE) * CHANNELS

    k = tl.arange(0, K)
    n = tl.arange(0, N)
    inside_block = n[None, :] * K + k[:, None]
    chunks = tl.cdiv(band_size, K)
    kernel_row = TAPS_W * chunks * (N * K)  # packed weights of one row of the kernel
    y0 = tl.zeros((M, N), dtype=tl.float32)
    y1 = tl.zeros((M, N), dtype=tl.float32)
    y2 = tl.zeros((M, N), dtype=tl.float32)
    y3 = tl.zeros((M, N), dtype=tl.float32)
    chunk = 0
    t_w = 0
    for step in range(TAPS_W * chunks):
        w = column + (t_w * MOVE_W + OFFSET_W)
        across = alive & (w >= 0) & (w < WIDTH)
        at = base + t_w * (MOVE_W * CHANNELS)
        channel, present = channels(band_start, band_size, chunk * K + k, k % READ_ALIGN)
        factors = blocks + (step * (N * K) + inside_block)
        if FLIPPED:
            top = tl.load(factors + 2 * kernel_row)
            bottom = tl.load(factors)
        else:
            top = tl.load(factors)
            bottom = tl.load(factors + 2 * kernel_row)
        middle = tl.load(factors + kernel_row)
        values = _row(x, at, across, h, channel, present, HEIGHT, WIDTH, CHANNELS, 0)
        y0 = tl.dot(values, top, y0, input_precision=PRECISION)
        values = _row(x, at, across, h, channel, present, HEIGHT, WIDTH, CHANNELS, 1)
        y0 = tl.dot(values, middle, y0, input_precision=PRECISION)
        y1 = tl.dot(values, top, y1, input_precision=PRECISION)
        values = _row(x, at, across, h, channel, present, HEIGHT, WIDTH, CHANNELS, 2)
        y0 = tl.dot(values, bottom, y0, input_precision=PRECISION)
        y1 = tl.dot(values, middle, y1, input_precision=PRECISION)
        y2 = tl.dot(values, top, y2, input_precision=PRECISION)
        values = _row(x, at, across, h, channel, present, HEIGHT, WIDTH, CHANNELS, 3)
        y1 = tl.dot(values, bottom, y1, input_precision=PRECISION)
        y2 = tl.dot(values, middle, y2, input_precision=PRECISION)
        y3 = tl.dot(values, top, y3, input_precision=PRECISION)
        values = _row(x, at, across, h, channel, present, HEIGHT, WIDTH, CHANNELS, 4)
        y2 = tl.dot(values, bottom, y2, input_precision=PRECISION)
        y3 = tl.dot(values, middle, y3, input_precision=PRECISION)
        values = _row(x, at, across, h, channel, present, HEIGHT, WIDTH, CHANNELS, 5)
        y3 = tl.dot(values, bottom, y3, input_precision=PRECISION)
        chunk += 1
        next_tap = chunk == chunks
        chunk = tl.where(next_tap, 0, chunk)
        t_w = tl.where(next_tap, t_w + 1, t_w)

    channel, present = channels(start, size, n, n % WRITTEN_ALIGN)
    place = pixel((image * OUT_HEIGHT + row) * OUT_WIDTH + column, WIDE) * OUT_CHANNELS
    targets = y + (place[:, None] + channel[None, :])
    written_row: tl.constexpr = OUT_WIDTH * OUT_CHANNELS
    y0 = epilogue(y0, bias, channel, present, HAS_BIAS, RELU).to(y.dtype.element_ty)
    y1 = epilogue(y1, bias, channel, present, HAS_BIAS, RELU).to(y.dtype.element_ty)
    y2 = epilogue(y2, bias, channel, present, HAS_BIAS, RELU).to(y.dtype.element_ty)
    y3 = epilogue(y3, bias, channel, present, HAS_BIAS, RELU).to(y.dtype.element_ty)
    alive1 = alive & (row + 1 < OUT_HEIGHT)
    alive2 = alive & (row + 2 < OUT_HEIGHT)
    alive3 = alive & (row + 3 < OUT_HEIGHT)
    tl.store(targets, y0, mask=alive[:, None] & present[None, :])
    tl.store(targets + written_row, y1, mask=alive1[:, None] & present[None, :])
    tl.store(targets + 2 * written_row, y2, mask=alive2[:, None] & present[None, :])
    tl.store(targets + 3 * written_row, y3, mask=alive3[:, None] & present[None, :])
    if STATISTICS:
        total, count = add_sum(y0.to(tl.float32), alive, tl.zeros((N,), tl.float32), 0.0)
        total, count = add_sum(y1.to(tl.float32), alive1, total, count)
        total, count = add_sum(y2.to(tl.float32), alive2, total, count)
        total, count = add_sum(y3.to(tl.float32), alive3, total, count)
        mean = total / count
        squares = sum_squares(y0.to(tl.float32), alive, mean) + sum_squares(y1.to(tl.float32), alive1, mean)
        squares += sum_squares(y2.to(tl.float32), alive2, mean) + sum_squares(y3.to(tl.float32), alive3, mean)
        row_place = partials + block.to(tl.int64) * (2 * OUT_CHANNELS) + channel
        tl.store(row_place, mean, mask=present)
        tl.store(row_place + OUT_CHANNELS, squares, mask=present)
        tl.store(counts + block, count)
