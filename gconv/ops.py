"""The operator: grouped 2-D convolution with groups of any sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from gconv.geometry import Geometry
from gconv.kernels import loop, masked, native, packed, reference
from gconv.kernels.choose import choose

Kernel = Callable[[Tensor, Tensor, Tensor | None, Geometry], Tensor]

KERNELS: dict[str, Kernel] = {
    "reference": reference.conv2d,
    "native": native.conv2d,
    "loop": loop.conv2d,
    "packed": packed.conv2d,
    "masked": masked.conv2d,
}

_forced: str | None = None


@contextmanager
def forced_kernel(name: str) -> Iterator[None]:
    """Compute every grouped convolution inside the block with one kernel, for comparing and counting.

    Raises:
        ValueError: there is no kernel of this name.
    """
    global _forced
    if name not in KERNELS:
        raise ValueError(f"no kernel {name!r}; there are {', '.join(KERNELS)}")
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def grouped_conv2d(x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """Convolve input group g with the weights of group g, for every g.

    Args:
        x_NCHW: (N, C, H, W) with C = ``geometry.in_groups.channels``.
        weight: of ``geometry.weight_shape``.
        bias: (O,) or None.

    Returns:
        (N, O, H', W'), differentiable any number of times.

    Raises:
        ValueError: the input does not have the channels that the geometry cuts.
    """
    if x_NCHW.shape[1] != geometry.in_groups.channels:
        raise ValueError(
            f"input of shape {tuple(x_NCHW.shape)} has {x_NCHW.shape[1]} channels; "
            f"the groups {geometry.in_groups} cut {geometry.in_groups.channels}"
        )
    kernel = _forced or choose(geometry, _compute_dtype(x_NCHW), x_NCHW.device.type)
    return KERNELS[kernel](x_NCHW, weight, bias, geometry)


def _compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype a convolution of ``x`` runs in, autocast considered."""
    if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype
