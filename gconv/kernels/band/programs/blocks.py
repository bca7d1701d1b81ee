# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportIndexIssue=false, reportOperatorIssue=false, reportCallIssue=false, reportArgumentType=false
"""Blocks of code that all band programs share: tiles, channels, pixels, bias and activation."""

import triton
import triton.language as tl


@triton.jit
def tile(tiles, number, READ_ALIGN: tl.constexpr, WRITTEN_ALIGN: tl.constexpr):
    """Row of the table of tiles: written channels, band of read channels, where the packed weights begin."""
    row = tiles + number * 5
    start = tl.multiple_of(tl.load(row), WRITTEN_ALIGN)
    size = tl.multiple_of(tl.load(row + 1), WRITTEN_ALIGN)
    band_start = tl.multiple_of(tl.load(row + 2), READ_ALIGN)
    band_size = tl.multiple_of(tl.load(row + 3), READ_ALIGN)
    return start, size, band_start, band_size, tl.multiple_of(tl.load(row + 4), 16)


@triton.jit
def channels(first, size, number, lane):
    """Channels of a range by number, those past its end replaced by the lane-th; and which are in it.

    Lanes count neighbours from 0 to the alignment of the range, so that a run of neighbours stays one, and its load one
    wide access.
    """
    present = number < size
    return first + tl.where(present, number, lane), present


@triton.jit
def pixel(pixel, WIDE: tl.constexpr):
    """A pixel number, below 2^31, as wide as its product with the channels must be."""
    if WIDE:
        pixel = pixel.to(tl.int64)
    return pixel


@triton.jit
def epilogue(sums, bias, channel, present, HAS_BIAS: tl.constexpr, RELU: tl.constexpr):
    """Add the bias and apply the activation to the values to write, (M, N)."""
    if HAS_BIAS:
        sums += tl.load(bias + channel, mask=present, other=0.0).to(tl.float32)[None, :]
    if RELU:  # NaN stays NaN, as in torch
        sums = tl.where(sums <= 0, 0.0, sums)
    return sums
