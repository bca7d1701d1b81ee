"""The ways to compute a grouped convolution, one file each: a kernel is its file and its line in ``KERNELS``.

Exports their names, ``find``, ``refusal`` and ``runnable``; ``choose.py`` chooses.

Every kernel is a module with the same four functions. Autograd is outside of them (``gconv/operator``), but for the
backward pass of many weights in ``decomposition.py``:

    conv2d(x_NCHW, weight, bias, geometry, activation="none") -> y_NOHW             "none" or "relu"
    input_gradient(dy_NOHW, weight, geometry, input_size) -> dx_NCHW
    weight_gradient(dy_NOHW, x_NCHW, geometry) -> dweight                           of ``geometry.weight_shape``
    refuses(geometry, dtype, device) -> str | None                                  why it cannot run

One with several ways to cut the work also has ``configs(geometry, dtype, device)``, and its ops take one of these as
``blocking=``; without, they take the one that was measured as the fastest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType

import torch

from gconv.kernels.geometry import Geometry
from gconv.kernels.packing import equal_neighbours


@dataclass(frozen=True)
class Kernel:
    """One kernel and its abilities.

    Attributes:
        name: name of its module in this folder.
        chosen: True if the operator may choose it; the reference is for tests.
        differentiable: True if torch differentiates its forward pass: ATen calls alone, and no zeros between groups,
            which an infinite gradient would turn into NaN.
        inlined_on: device types on which Inductor traces it into calls of ATen or Triton. On a CPU only kernels without
            zeros between groups, so that nothing infinite crosses groups.
        replaces_aten: whether it is preferred to a compiler's own convolution where it is chosen for equal groups.
    """

    name: str
    chosen: bool = True
    differentiable: bool = False
    inlined_on: tuple[str, ...] = ()
    replaces_aten: bool = False


KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel("reference", chosen=False, differentiable=True),
        Kernel("native", differentiable=True),
        Kernel("loop", differentiable=True, inlined_on=("cpu",)),
        Kernel("merged", differentiable=True, inlined_on=("cpu", "cuda")),
        Kernel("tails"),
        Kernel("packed", inlined_on=("cuda",)),
        Kernel("nested"),
        Kernel("masked", inlined_on=("cuda",)),
        Kernel("widened", replaces_aten=True),
        Kernel("band", inlined_on=("cuda",), replaces_aten=True),
    )
}
NAMES = tuple(KERNELS)
CANDIDATES = tuple(name for name, kernel in KERNELS.items() if kernel.chosen)
DIFFERENTIABLE = frozenset(name for name, kernel in KERNELS.items() if kernel.differentiable)
OPS = ("conv2d", "input_gradient", "weight_gradient")


@cache
def find(name: str) -> ModuleType:
    """Return the module of a kernel.

    Raises:
        ValueError: there is no kernel of this name, or it needs a library that is not installed.
    """
    if name not in NAMES:
        raise ValueError(f"no kernel {name!r}; there are {', '.join(NAMES)}")
    try:
        return import_module(f"gconv.kernels.{name}")
    except ModuleNotFoundError as error:
        raise ValueError(f"kernel {name!r} needs {error.name}, which is not installed") from None


def refusal(name: str, geometry: Geometry, dtype: torch.dtype, device: torch.device | str) -> str | None:
    """Return the reason why a kernel cannot compute a layer; None if it can."""
    try:
        return find(name).refuses(geometry, dtype, device)
    except ValueError as error:
        return str(error)


def runnable(geometry: Geometry, dtype: torch.dtype, device: torch.device | str) -> tuple[str, ...]:
    """Return the names of the candidates that can compute a layer."""
    return tuple(name for name in CANDIDATES if refusal(name, geometry, dtype, device) is None)


def different(geometry: Geometry, names: Sequence[str]) -> list[str]:
    """Return the kernels that compute a layer in different ways: of several that make the same calls, the first."""
    first: dict[object, str] = {}
    for name in names:
        kernel = find(name)
        calls: object = name
        if name == "native":
            calls = equal_neighbours(geometry.in_groups.sizes, geometry.out_groups.sizes)
        elif hasattr(kernel, "KERNEL") and not (name == "merged" and kernel.sorted_groups(geometry)):
            calls = kernel.KERNEL.packings(geometry)
        first.setdefault(calls, name)
    return list(first.values())
