# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false
"""Correlation of any geometry, one written position after the other."""

import triton
import triton.language as tl

from gconv.kernels.band.programs.blocks import channels, epilogue, pixel, tile
from gconv.kernels.band.programs.statistics import add_sum, sum_squares


@triton.jit(do_not_specialize=["batch"])
def correlate(
    x,
    weight,
    bias,
    y,
    partials,
    counts,
    tiles,
    phases,
    tile_count,
    batch,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    OUT_HEIGHT: tl.constexpr,
    OUT_WIDTH: tl.constexpr,
    OUT_CHANNELS: tl.constexpr,
    READ_STEP_H: tl.constexpr,
    READ_STEP_W: tl.constexpr,
    WRITE_STEP_H: tl.constexpr,
    WRITE_STEP_W: tl.constexpr,
    TAP_STEP_H: tl.constexpr,
    TAP_STEP_W: tl.constexpr,
    MOVE_H: tl.constexpr,
    MOVE_W: tl.constexpr,
    READ_ALIGN: tl.constexpr,
    WRITTEN_ALIGN: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr,
    STATISTICS: tl.constexpr,
):
    """One tile at M written positions of one phase (tables.AxisMap). Grid: (pixel blocks · tiles, phases).

    With statistics (one phase), row r of ``partials`` gets of pixel block r the mean of every channel, then the sum of
    squares of what differs from it, and ``counts`` its pixels.
    """
    phase = phases + tl.program_id(1) * 10
    first_h, count_h, taps_h = tl.load(phase), tl.load(phase + 1), tl.load(phase + 2)
    tap_h, offset_h = tl.load(phase + 3), tl.load(phase + 4)
    first_w, count_w, taps_w = tl.load(phase + 5), tl.load(phase + 6), tl.load(phase + 7)
    tap_w, offset_w = tl.load(phase + 8), tl.load(phase + 9)
    number = tl.program_id(0) % tile_count
    start, size, band_start, band_size, weight_start = tile(tiles, number, READ_ALIGN, WRITTEN_ALIGN)
    blocks = weight + weight_start

    m = (tl.program_id(0) // tile_count) * M + tl.arange(0, M)
    alive = m < batch * count_h * count_w
    m = tl.where(alive, m, 0)
    j_w = m % count_w
    j_h = m // count_w % count_h
    image = m // count_w // count_h
    read_h = j_h * READ_STEP_H + offset_h
    read_w = j_w * READ_STEP_W + offset_w
    base = pixel((image * HEIGHT + read_h) * WIDTH + read_w, WIDE) * CHANNELS

    k = tl.arange(0, K)
    n = tl.arange(0, N)
    inside_block = n[None, :] * K + k[:, None]
    chunks = tl.cdiv(band_size, K)
    sums = tl.zeros((M, N), dtype=tl.float32)
    chunk = 0
    t_h = 0
    t_w = 0
    for _ in range(taps_h * taps_w * chunks):
        h = read_h + t_h * MOVE_H
        w = read_w + t_w * MOVE_W
        inside = alive & (h >= 0) & (h < HEIGHT) & (w >= 0) & (w < WIDTH)
        move = (t_h * (MOVE_H * WIDTH) + t_w * MOVE_W) * CHANNELS
        channel, present = channels(band_start, band_size, chunk * K + k, k % READ_ALIGN)
        # Taps read the same pixels again: first-level cache (.ca). Up to Triton 3.8 only loads of a single stage obey.
        values = tl.load(
            x + (tl.where(inside, base + move, 0)[:, None] + channel[None, :]),
            mask=inside[:, None] & present[None, :],
            other=0.0,
            cache_modifier=".ca",
        )
        block = (tap_h + t_h * TAP_STEP_H) + (tap_w + t_w * TAP_STEP_W)
        factors = tl.load(blocks + ((block * chunks + chunk) * (N * K) + inside_block))
        sums = tl.dot(values, factors, sums, input_precision=PRECISION)
        # Counters are carried: a remainder costs more than the rest of a step's integers.
        chunk += 1
        next_tap = chunk == chunks
        chunk = tl.where(next_tap, 0, chunk)
        t_w = tl.where(next_tap, t_w + 1, t_w)
        next_row = t_w == taps_w
        t_w = tl.where(next_row, 0, t_w)
        t_h = tl.where(next_row, t_h + 1, t_h)

    channel, present = channels(start, size, n, n % WRITTEN_ALIGN)
    result = epilogue(sums, bias, channel, present, HAS_BIAS, RELU).to(y.dtype.element_ty)
    written_h = first_h + j_h * WRITE_STEP_H
    written_w = first_w + j_w * WRITE_STEP_W
    place = pixel((image * OUT_HEIGHT + written_h) * OUT_WIDTH + written_w, WIDE) * OUT_CHANNELS
    tl.store(y + (place[:, None] + channel[None, :]), result, mask=alive[:, None] & present[None, :])
    if STATISTICS:
        written = result.to(tl.float32)  # as it is read again, rounded
        total, count = add_sum(written, alive, tl.zeros((N,), tl.float32), 0.0)
        mean = total / count
        row = tl.program_id(0) // tile_count
        place = partials + row.to(tl.int64) * (2 * OUT_CHANNELS) + channel
        tl.store(place, mean, mask=present)
        tl.store(place + OUT_CHANNELS, sum_squares(written, alive, mean), mask=present)
        tl.store(counts + row, count)
