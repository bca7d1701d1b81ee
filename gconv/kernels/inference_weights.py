"""Weights in the form that a kernel needs, kept between forward passes while the parameter does not change.

For one image, writing the blocks of a weight and changing its memory format takes as long as the convolution. In
training the weight changes at each step, and nothing is kept.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from gconv.kernels import aten
from gconv.kernels.geometry import Geometry

Weights = tuple[Tensor, ...]
MAX_FORMS = 8  # kept of one parameter, for kernels and sizes of input that take turns


@dataclass(eq=False, slots=True)
class _Kept:
    """Weights computed from a parameter.

    Attributes:
        state: where the numbers of the parameter are, in which layout, and torch's count of changes in place.
        numbers: bytes that the weights were computed from; None before the first are kept.
        forms: weights in each form; None if a form was used once.
    """

    state: tuple[Hashable, ...]
    numbers: bytearray | None = None
    forms: dict[Hashable, Weights | None] = field(default_factory=dict)


# One entry per parameter, which goes with it.
_kept = WeakTensorKeyDictionary()


def may_be_kept(weight: Tensor, x: Tensor, bias: Tensor | None, geometry: Geometry) -> bool:
    """Return True for a parameter and a plain input on a CPU, outside of autograd, transforms and modes.

    False for arguments that do not fit the geometry, which oneDNN does not check.
    """
    if torch.is_grad_enabled() or type(weight) is not nn.Parameter or type(x) not in (Tensor, nn.Parameter):
        return False
    if x.shape[1] != geometry.in_groups.channels or weight.shape != geometry.weight_shape:
        return False
    if bias is not None and bias.shape != (geometry.out_groups.channels,):
        return False
    return x.device.type == "cpu" and aten.is_plain(weight) and not weight.is_inference()


def kept(weight: Tensor, form: Hashable, make: Callable[[bool], Weights]) -> Weights:
    """Return the weights in one form: those kept before, or new ones.

    Weights are kept when a parameter is unchanged at its second use in one form, and are valid as long as the parameter
    lives and does not change. Changes that torch does not count (through ``.data`` or NumPy) are detected by comparing
    all bytes, at the speed of memory.

    Args:
        weight: a parameter that ``may_be_kept``.
        form: names what ``make`` returns.
        make: computes the weights. Called with True if they will be kept: then they must not share memory with the
            parameter.
    """
    state = weight.data_ptr(), weight._version, weight.dtype, weight.shape, weight.stride()
    seen: _Kept | None = _kept.get(weight)
    if seen is None or seen.state != state:
        seen = _kept[weight] = _Kept(state)
    if form not in seen.forms:
        if len(seen.forms) >= MAX_FORMS:
            seen.forms.clear()
        seen.forms[form] = None
        return make(False)
    numbers = _bytes(weight)
    if numbers is None:
        return make(False)
    if seen.numbers != numbers:
        seen = _kept[weight] = _Kept(state, bytearray(numbers))
    weights = seen.forms.get(form)
    if weights is None:
        with torch.inference_mode(False), torch.no_grad():
            weights = seen.forms[form] = make(True)
    return weights


def _bytes(weight: Tensor) -> ctypes.Array | None:
    """Return the memory of a tensor without a copy; None if it has gaps.

    A view by NumPy would forbid to resize the storage, as FSDP does.
    """
    images = weight if weight.dim() == 4 else weight.unsqueeze(0)
    if not (weight.is_contiguous() or images.is_contiguous(memory_format=torch.channels_last)):
        return None
    return (ctypes.c_char * weight.nbytes).from_address(weight.data_ptr())
