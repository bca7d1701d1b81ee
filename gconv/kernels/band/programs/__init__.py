"""The Triton programs of the band kernel; importing them needs Triton.

Images are dense NHWC. A step multiplies the pixels of a program with one packed block of weights (see ``tiles``): loops
over kernel taps and over the band are flattened into one, so that loads of all of them overlap. Sizes of images are
constants, which turns divisions into multiplications; the batch is not. Offsets have 32 bits, or 64 where a tensor has
2^31 elements or more (WIDE). A place that must not be read is replaced by one that may before its load is masked:
masked loads that are in flight can fault.

Legend: M pixels of a program, N written channels of a tile, K read channels of a step, J columns (tap, read channel).
"""

import triton  # pyright: ignore[reportMissingImports]

from gconv.kernels.band.programs.positions import correlate
from gconv.kernels.band.programs.rows import correlate_rows
from gconv.kernels.band.programs.statistics import merge_statistics
from gconv.kernels.band.programs.weights import add_partials, gather, weight_partials

INTERPRETED = not isinstance(correlate, triton.JITFunction)

__all__ = [
    "INTERPRETED",
    "add_partials",
    "correlate",
    "correlate_rows",
    "gather",
    "merge_statistics",
    "weight_partials",
]
