"""Bands of channels in Triton: groups of any sizes as small dense products, in at most two launches and without a copy.

Works on NHWC and writes NHWC slices of one output. ``tiles`` cuts a layer into products, ``tables`` holds them on the
device, ``correlate`` and ``weights`` launch the Triton ``programs``, ``support`` decides for which layers.
Groups packed into one tile share its arithmetic: a NaN or an infinity in one reaches the others' outputs of that tile.
"""

from gconv.kernels.band.correlate import conv2d, conv2d_statistics, input_gradient
from gconv.kernels.band.support import configs, refuses
from gconv.kernels.band.tiles import Blocking
from gconv.kernels.band.weights import weight_gradient

__all__ = ["Blocking", "configs", "conv2d", "conv2d_statistics", "input_gradient", "refuses", "weight_gradient"]
