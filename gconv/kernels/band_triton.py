# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false
"""The band kernels in Triton: one correlation for forward and input gradient, one for the weight gradient.

Images are dense NHWC. A step multiplies the pixels of a program with one packed block of weights (see band_tiles):
loops over kernel taps and over the band are flattened into one, so that loads of all of them overlap. Sizes of images
are constants, which turns divisions into multiplications; the batch is not. Offsets have 32 bits, or 64 where a tensor
has 2^31 elements or more (WIDE). A place that must not be read is replaced by one that may before its load is masked:
masked loads that are in flight can fault.

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


@triton.jit
def _pixel(pixel, WIDE: tl.constexpr):
    """A pixel number, below 2^31, as wide as its product with the channels must be."""
    if WIDE:
        pixel = pixel.to(tl.int64)
    return pixel


@triton.jit
def _epilogue(sums, bias, channel, present, HAS_BIAS: tl.constexpr, RELU: tl.constexpr):
    if HAS_BIAS:
        sums += tl.load(bias + channel, mask=present, other=0.0).to(tl.float32)[None, :]
    if RELU:  # NaN stays NaN, as in torch
        sums = tl.where(sums <= 0, 0.0, sums)
    return sums


@triton.jit
def _sum_apart(written, alive, total, count):
    """Of what one block of pixels wrote: its sum added to a total, and how many pixels it has to a count."""
    return total + tl.sum(tl.where(alive[:, None], written, 0.0), 0), count + tl.sum(alive.to(tl.float32), 0)


@triton.jit
def _squares_apart(written, alive, mean):
    """Sum of squares of what differs from the mean."""
    apart = tl.where(alive[:, None], written - mean[None, :], 0.0)
    return tl.sum(apart * apart, 0)


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
    """One tile at M written positions of one phase (band_tiles.Walk). Grid: (pixel blocks · tiles, phases).

    With statistics (one phase), row r of ``partials`` gets of pixel block r the mean of every channel, then the sum of
    squares of what differs from it, and ``counts`` its pixels.
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

    m = (tl.program_id(0) // tile_count) * M + tl.arange(0, M)
    alive = m < batch * count_h * count_w
    m = tl.where(alive, m, 0)
    j_w = m % count_w
    j_h = m // count_w % count_h
    image = m // count_w // count_h
    read_h = j_h * READ_STEP_H + offset_h
    read_w = j_w * READ_STEP_W + offset_w
    base = _pixel((image * HEIGHT + read_h) * WIDTH + read_w, WIDE) * CHANNELS

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
        channel, present = _channels(band_start, band_size, chunk * K + k, k % READ_ALIGN)
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

    channel, present = _channels(start, size, n, n % WRITTEN_ALIGN)
    result = _epilogue(sums, bias, channel, present, HAS_BIAS, RELU).to(y.dtype.element_ty)
    written_h = first_h + j_h * WRITE_STEP_H
    written_w = first_w + j_w * WRITE_STEP_W
    place = _pixel((image * OUT_HEIGHT + written_h) * OUT_WIDTH + written_w, WIDE) * OUT_CHANNELS
    tl.store(y + (place[:, None] + channel[None, :]), result, mask=alive[:, None] & present[None, :])
    if STATISTICS:
        written = result.to(tl.float32)  # as it is read again, rounded
        total, count = _sum_apart(written, alive, tl.zeros((N,), tl.float32), 0.0)
        mean = total / count
        row = tl.program_id(0) // tile_count
        place = partials + row.to(tl.int64) * (2 * OUT_CHANNELS) + channel
        tl.store(place, mean, mask=present)
        tl.store(place + OUT_CHANNELS, _squares_apart(written, alive, mean), mask=present)
        tl.store(counts + row, count)


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
    tile = tiles + (tl.program_id(0) % tile_count) * 5
    start = tl.multiple_of(tl.load(tile), WRITTEN_ALIGN)
    size = tl.multiple_of(tl.load(tile + 1), WRITTEN_ALIGN)
    band_start = tl.multiple_of(tl.load(tile + 2), READ_ALIGN)
    band_size = tl.multiple_of(tl.load(tile + 3), READ_ALIGN)
    blocks = weight + tl.multiple_of(tl.load(tile + 4), 16)

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
    base = _pixel((image * HEIGHT + h) * WIDTH + column + OFFSET_W, WIDE) * CHANNELS

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
        channel, present = _channels(band_start, band_size, chunk * K + k, k % READ_ALIGN)
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

    channel, present = _channels(start, size, n, n % WRITTEN_ALIGN)
    place = _pixel((image * OUT_HEIGHT + row) * OUT_WIDTH + column, WIDE) * OUT_CHANNELS
    targets = y + (place[:, None] + channel[None, :])
    written_row: tl.constexpr = OUT_WIDTH * OUT_CHANNELS
    y0 = _epilogue(y0, bias, channel, present, HAS_BIAS, RELU).to(y.dtype.element_ty)
    y1 = _epilogue(y1, bias, channel, present, HAS_BIAS, RELU).to(y.dtype.element_ty)
    y2 = _epilogue(y2, bias, channel, present, HAS_BIAS, RELU).to(y.dtype.element_ty)
    y3 = _epilogue(y3, bias, channel, present, HAS_BIAS, RELU).to(y.dtype.element_ty)
    alive1 = alive & (row + 1 < OUT_HEIGHT)
    alive2 = alive & (row + 2 < OUT_HEIGHT)
    alive3 = alive & (row + 3 < OUT_HEIGHT)
    tl.store(targets, y0, mask=alive[:, None] & present[None, :])
    tl.store(targets + written_row, y1, mask=alive1[:, None] & present[None, :])
    tl.store(targets + 2 * written_row, y2, mask=alive2[:, None] & present[None, :])
    tl.store(targets + 3 * written_row, y3, mask=alive3[:, None] & present[None, :])
    if STATISTICS:
        total, count = _sum_apart(y0.to(tl.float32), alive, tl.zeros((N,), tl.float32), 0.0)
        total, count = _sum_apart(y1.to(tl.float32), alive1, total, count)
        total, count = _sum_apart(y2.to(tl.float32), alive2, total, count)
        total, count = _sum_apart(y3.to(tl.float32), alive3, total, count)
        mean = total / count
        squares = _squares_apart(y0.to(tl.float32), alive, mean) + _squares_apart(y1.to(tl.float32), alive1, mean)
        squares += _squares_apart(y2.to(tl.float32), alive2, mean) + _squares_apart(y3.to(tl.float32), alive3, mean)
        row_place = partials + block.to(tl.int64) * (2 * OUT_CHANNELS) + channel
        tl.store(row_place, mean, mask=present)
        tl.store(row_place + OUT_CHANNELS, squares, mask=present)
        tl.store(counts + block, count)


@triton.jit(do_not_specialize=["rows", "channels"])
def merge_statistics(partials, counts, merged, merged_counts, rows, channels, R: tl.constexpr, N: tl.constexpr):
    """One row of what R neighbouring rows say together (Chan, Golub & LeVeque 1979); row r is of ``counts[r]`` pixels.

    Grid: (merged rows, blocks of N channels).
    """
    first_row = tl.program_id(0) * R
    row = first_row + tl.arange(0, R)
    alive = row < rows
    row = tl.where(alive, row, 0)
    channel = tl.program_id(1) * N + tl.arange(0, N)
    present = channel < channels
    channel = tl.where(present, channel, 0)
    count = tl.load(counts + row, mask=alive, other=0.0)
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
    tl.store(merged_counts + tl.program_id(0), total)


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
    tile = tiles + tl.load(job) * 5
    start = tl.multiple_of(tl.load(tile), WRITTEN_ALIGN)
    size = tl.multiple_of(tl.load(tile + 1), WRITTEN_ALIGN)
    band_start = tl.multiple_of(tl.load(tile + 2), READ_ALIGN)
    band_size = tl.multiple_of(tl.load(tile + 3), READ_ALIGN)
    weight_start = tl.multiple_of(tl.load(tile + 4), 16)

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
    move = (move_h * WIDTH + move_w) * CHANNELS  # from the pixel of a row to that of a column
    read = exists & x_present
    dy_channel, dy_present = _channels(start, size, n, n % WRITTEN_ALIGN)

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
        base = _pixel((image * HEIGHT + out_h * STRIDE_H) * WIDTH + out_w * STRIDE_W, WIDE) * CHANNELS
        values = tl.load(
            x + (tl.where(inside, base[:, None] + move[None, :], 0) + x_channel[None, :]),
            mask=inside,
            other=0.0,
            cache_modifier=".ca",
        )
        above = tl.load(
            dy + (_pixel(tl.where(alive, m, 0), WIDE)[:, None] * DY_CHANNELS + dy_channel[None, :]),
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


INTERPRETED = not isinstance(correlate, triton.JITFunction)
