# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false
"""Mean and sum of squares of each channel that a program writes, and how those of many programs are merged."""

import triton
import triton.language as tl


@triton.jit
def add_sum(written, alive, total, count):
    """Add the sum of the values written in one block of pixels to a total, and its number of pixels to a count."""
    return total + tl.sum(tl.where(alive[:, None], written, 0.0), 0), count + tl.sum(alive.to(tl.float32), 0)


@triton.jit
def sum_squares(written, alive, mean):
    """Return the sum of squared deviations from the mean."""
    deviations = tl.where(alive[:, None], written - mean[None, :], 0.0)
    return tl.sum(deviations * deviations, 0)


@triton.jit(do_not_specialize=["rows", "channels"])
def merge_statistics(partials, counts, merged, merged_counts, rows, channels, R: tl.constexpr, N: tl.constexpr):
    """Merge the statistics of R neighbouring rows (Chan, Golub & LeVeque 1979); row r is of ``counts[r]`` pixels.

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
    # Means are taken relative to the first one: the difference of near numbers is exact, their sum is not.
    deviations = tl.where(inside, tl.load(partials + place, mask=inside, other=0.0) - first[None, :], 0.0)
    mean = tl.sum(deviations * count[:, None], 0) / total
    squares = tl.sum(tl.load(partials + channels + place, mask=inside, other=0.0), 0)
    deviations = deviations - mean[None, :]
    squares += tl.sum(deviations * deviations * count[:, None], 0)
    target = merged + tl.program_id(0).to(tl.int64) * (2 * channels)
    tl.store(target + channel, first + mean, mask=present)
    tl.store(target + channels + channel, squares, mask=present)
    tl.store(merged_counts + tl.program_id(0), total)
