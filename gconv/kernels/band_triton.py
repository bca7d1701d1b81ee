# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false
"""The band kernels in Triton: one correlation for forward and input gradient, one for the weight gradient.

Images are dense NHWC. A step multiplies the pixels of a program with one packed block of weights (see band_tiles):
loops over kernel taps and over the band are flattened into one, so that loads of all of them overlap. Every address is
a pixel number, below 2^31, times the channels in 64 bits. A place that must not be read is replaced by one that may
before its load is masked: masked loads that are in flight can fault.

Legend: M pixels of a program, N written channels of a tile, K read channels of a step, J columns (tap, read channel).
"""

import triton
import triton.language as tl


@triton.jit
def gather(source, index, target, count, SIZE: tl.constexpr):
    """target[i] = source[index[i]], or 0 where the index is negative."""
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    place = tl.load(index + at, mask=at < count, other=-1)
    present = place >= 0
    value = tl.load(source + tl.where(present, place, 0), mask=present, other=0)
    tl.store(target + at, value, mask=at < count)


@triton.jit
def _channels(first, size, number, lane):
    """Channels of a range by number, those past its end replaced by the lane-th; and which are in it.

    Lanes count neighbours from 0 to the alignment of the range, so that a run of neighbours stays one, and its load one
    wide access.
    """
    present = number < size
    return first + tl.where(present, number, lane), present


@triton.jit(do_not_specialize=["batch", "height", "width", "channels", "out_height", "out_width", "out_channels"])
def correlate(
    x,
    weight,
    bias,
    y,
    partials,
    tiles,
    phases,
    tile_count,
    batch,
    height,
    width,
    channels,
    out_height,
    out_width,
    out_channels,
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
    HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr,
    STATISTICS: tl.constexpr,
):
    """One tile at M written positions of one phase (band_tiles.Walk). Grid: (pixel blocks · tiles, phases).

    With statistics (one phase), row r of ``partials`` gets of pixel block r the mean of every channel, then the sum of
    squares of what differs from it.
    """
    phase = phases + tl.program_id(1) * 10
    first_h, count_h, taps_h = tl.load(phase), tl.load(phase + 1), tl.load(phase + 2)
    tap_h, offset_h = tl.load(phase + 3), tl.load(phase + 4)
    first_w, count_w, taps_w = tl.load(phase + 5), tl.load(phase + 6), tl.load(phase + 7)
    tap_w, offset_w = tl.load(phase + 8), tl.load(phase + 9)
    tile = tiles + (tl.program_id(0) % tile_count) * 5
    start = tl.multiple_of(tl.load(tile), WRITTEN_ALIGN)
    size = tl.multiple_of(tl.load(tile + 1), WRITTEN_ALIGN)
    band_start = tl.multiple_of(tl.load(tile + 2), READ_ALIGN)
    band_size = tl.multiple_of(tl.load(tile + 3), READ_ALIGN)
    blocks = weight + tl.multiple_of(tl.load(tile + 4), 16)
    channels = channels // READ_ALIGN * READ_ALIGN  # changes nothing; tl.multiple_of says nothing of an argument
    out_channels = out_channels // WRITTEN_ALIGN * WRITTEN_ALIGN

    m = (tl.program_id(0) // tile_count) * M + tl.arange(0, M)
    alive = m < batch * count_h * count_w
    m = tl.where(alive, m, 0)
    j_w = m % count_w
    j_h = m // count_w % count_h
    image = m // count_w // count_h
    read_h = j_h * READ_STEP_H + offset_h
    read_w = j_w * READ_STEP_W + offset_w

    k = tl.arange(0, K)
    n = tl.arange(0, N)
    inside_block = n[None, :] * K + k[:, None]
    chunks = tl.cdiv(band_size, K)
    sums = tl.zeros((M, N), dtype=tl.float32)
    for step in range(taps_h * taps_w * chunks):
        chunk = step % chunks
        t_h = step // chunks // taps_w
        t_w = step // chunks % taps_w
        h = read_h + t_h * MOVE_H
        w = read_w + t_w * MOVE_W
        inside = alive & (h >= 0) & (h < height) & (w >= 0) & (w < width)
        pixel = tl.where(inside, (image * height + h) * width + w, 0).to(tl.int64)
        channel, present = _channels(band_start, band_size, chunk * K + k, k % READ_ALIGN)
        # Taps read the same pixels again: first-level cache (.ca). Up to Triton 3.8 only loads of a single stage obey.
        values = tl.load(
            x + pixel[:, None] * channels + channel[None, :],
            mask=inside[:, None] & present[None, :],
            other=0.0,
            cache_modifier=".ca",
        )
        block = (tap_h + t_h * TAP_STEP_H) + (tap_w + t_w * TAP_STEP_W)
        factors = tl.load(blocks + (block * chunks + chunk) * (N * K) + inside_block)
        sums = tl.dot(values, factors, sums, input_precision=PRECISION)

    channel, present = _channels(start, size, n, n % WRITTEN_ALIGN)
    if HAS_BIAS:
        sums += tl.load(bias + channel, mask=present, other=0.0).to(tl.float32)[None, :]
    if RELU:  # NaN stays NaN, as in torch
        sums = tl.where(sums <= 0, 0.0, sums)
    written_h = first_h + j_h * WRITE_STEP_H
    written_w = first_w + j_w * WRITE_STEP_W
    pixel = ((image * out_height + written_h) * out_width + written_w).to(tl.int64)
    result = sums.to(y.dtype.element_ty)
    tl.store(y + pixel[:, None] * out_channels + channel[None, :], result, mask=alive[:, None] & present[None, :])
    if STATISTICS:
        written = tl.where(alive[:, None], result.to(tl.float32), 0.0)  # as it is read again, rounded
        mean = tl.sum(written, 0) / tl.sum(alive.to(tl.float32), 0)
        apart = tl.where(alive[:, None], written - mean[None, :], 0.0)
        row = partials + (tl.program_id(0) // tile_count).to(tl.int64) * (2 * out_channels)
        tl.store(row + channel, mean, mask=present)
        tl.store(row + out_channels + channel, tl.sum(apart * apart, 0), mask=present)


@triton.jit(do_not_specialize=["rows", "channels", "pixels", "share"])
def merge_statistics(partials, merged, rows, channels, pixels, share, R: tl.constexpr, N: tl.constexpr):
    """One row of what R neighbouring rows say together (Chan, Golub & LeVeque 1979); a row is of ``share`` pixels.

    Grid: (merged rows, blocks of N channels).
    """
    first_row = tl.program_id(0) * R
    row = first_row + tl.arange(0, R)
    alive = row < rows
    row = tl.where(alive, row, 0)
    channel = tl.program_id(1) * N + tl.arange(0, N)
    present = channel < channels
    channel = tl.where(present, channel, 0)
    count = tl.where(alive, tl.minimum(pixels - row * share, share), 0).to(tl.float32)
    total = tl.sum(count, 0)
    place = row.to(tl.int64)[:, None] * (2 * channels) + channel[None, :]
    inside = alive[:, None] & present[None, :]
    first = tl.load(partials + first_row.to(tl.int64) * (2 * channels) + channel)
    # Means are told from the first one: the difference of near numbers is exact, their sum is not.
    apart = tl.where(inside, tl.load(partials + place, mask=inside, other=0.0) - first[None, :], 0.0)
    mean = tl.sum(apart * count[:, None], 0) / total
    squares = tl.sum(tl.load(partials + channels + place, mask=inside, other=0.0), 0)
    apart = apart - mean[None, :]
    squares += tl.sum(apart * apart * count[:, None], 0)
    target = merged + tl.program_id(0).to(tl.int64) * (2 * channels)
    tl.store(target + channel, first + mean, mask=present)
    tl.store(target + channels + channel, squares, mask=present)


@triton.jit(
    do_not_specialize=["pixels", "share", "height", "width", "channels", "out_height", "out_width", "dy_channels"]
)
def weight_partials(
    x,
    dy,
    partials,
    tiles,
    jobs,
    packed_size,
    pixels,
    share,
    height,
    width,
    channels,
    out_height,
    out_width,
    dy_channels,
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
):
    """Sums over ``share`` output pixels, for J / K packed blocks of one tile. Grid: (jobs, shares)."""
    job = jobs + tl.program_id(0) * 2
    tile = tiles + tl.load(job) * 5
    start = tl.multiple_of(tl.load(tile), WRITTEN_ALIGN)
    size = tl.multiple_of(tl.load(tile + 1), WRITTEN_ALIGN)
    band_start = tl.multiple_of(tl.load(tile + 2), READ_ALIGN)
    band_size = tl.multiple_of(tl.load(tile + 3), READ_ALIGN)
    weight_start = tl.multiple_of(tl.load(tile + 4), 16)
    channels = channels // READ_ALIGN * READ_ALIGN
    dy_channels = dy_channels // WRITTEN_ALIGN * WRITTEN_ALIGN

    j = tl.arange(0, J)
    n = tl.arange(0, N)
    block = tl.load(job + 1) + j // K
    chunks = tl.cdiv(band_size, K)
    tap = block // chunks
    exists = tap < KERNEL_H * KERNEL_W
    # Remainders by subtraction: the compiler sees that these are constant over the K columns of a block.
    x_channel, x_present = _channels(band_start, band_size, (block - tap * chunks) * K + j % K, j % READ_ALIGN)
    tap_h = tap // KERNEL_W
    move_h = tap_h * DILATION_H - PADDING_H
    move_w = (tap - tap_h * KERNEL_W) * DILATION_W - PADDING_W
    dy_channel, dy_present = _channels(start, size, n, n % WRITTEN_ALIGN)

    sums = tl.zeros((J, N), dtype=tl.float32)
    begin = tl.program_id(1) * share
    for first in range(begin, tl.minimum(begin + share, pixels), M):
        m = first + tl.arange(0, M)
        alive = m < pixels
        m = tl.where(alive, m, 0)
        image = m // out_width // out_height
        h = (m // out_width % out_height * STRIDE_H)[:, None] + move_h[None, :]
        w = (m % out_width * STRIDE_W)[:, None] + move_w[None, :]
        inside = (h >= 0) & (h < height) & (w >= 0) & (w < width) & alive[:, None] & (exists & x_present)[None, :]
        pixel = tl.where(inside, (image * height)[:, None] * width + h * width + w, 0).to(tl.int64)
        values = tl.load(x + pixel * channels + x_channel[None, :], mask=inside, other=0.0, cache_modifier=".ca")
        above = tl.load(
            dy + m.to(tl.int64)[:, None] * dy_channels + dy_channel[None, :],
            mask=alive[:, None] & dy_present[None, :],
            other=0.0,
        )
        sums = tl.dot(tl.trans(values), above, sums, input_precision=PRECISION)

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


INTERPRETED = not isinstance(correlate, triton.JITFunction)
