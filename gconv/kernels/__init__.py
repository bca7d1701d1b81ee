"""The ways of computing a grouped convolution, one file each, and the choice between them.

Every kernel is a module with the same four functions; none needs autograd inside:

    conv2d(x_NCHW, weight, bias, geometry, activation="none") -> y_NOHW             "none" or "relu"
    input_gradient(dy_NOHW, weight, geometry, input_size) -> dx_NCHW
    weight_gradient(dy_NOHW, x_NCHW, geometry) -> dweight                           of ``geometry.weight_shape``
    refuses(geometry, dtype, device) -> str | None                                  why it cannot run
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

import torch

from gconv.kernels.geometry import Geometry

NAMES = ("reference", "native", "loop", "merged", "tails", "packed", "nested", "masked", "widened", "band")
OPS = ("conv2d", "input_gradient", "weight_gradient")
# ATen calls alone, and no zeros between groups, which an infinite gradient would turn into NaN: torch differentiates
# their forward pass by itself.
DIFFERENTIABLE = frozenset({"reference", "native", "loop", "merged"})
# What a table may choose between; the reference is for tests.
CANDIDATES = ("native", "loop", "merged", "tails", "packed", "nested", "masked", "widened", "band")


@cache
def find(name: str) -> ModuleType:
    """The kernel of this name.

    Raises:
        ValueError: there is none, or it needs a library that is not installed.
    """
    if name not in NAMES:
        raise ValueError(f"no kernel {name!r}; there are {', '.join(NAMES)}")
    try:
        return import_module(f"gconv.kernels.{name}")
    except ModuleNotFoundError as error:
        raise ValueError(f"kernel {name!r} needs {error.name}, which is not installed") from None


def refusal(name: str, geometry: Geometry, dtype: torch.dtype, device: torch.device | str) -> str | None:
    """Why a kernel cannot compute a layer; None if it can."""
    try:
        return find(name).refuses(geometry, dtype, device)
    except ValueError as error:
        return str(error)


def runnable(geometry: Geometry, dtype: torch.dtype, device: torch.device | str) -> tuple[str, ...]:
    """The candidates that can compute a layer."""
    return tuple(name for name in CANDIDATES if refusal(name, geometry, dtype, device) is None)
