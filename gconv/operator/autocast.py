"""Casts under autocast, as torch makes them for ``F.conv2d``: a parameter is cast once in a block.

Torch keeps casts of parameters until the outermost block of autocast ends, where Python cannot read them. The casts
here live as long: an empty tensor that torch keeps with its own tells when it frees them.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

_casts: dict[int, tuple[Tensor, Any, Tensor]] = {}  # by id: the parameter, its state when it was cast, the cast
_block: weakref.ref | None = None  # to the tensor that torch keeps until the block ends


def cast(*tensors: Tensor | None, once: bool = False) -> list[Any]:
    """Cast to the dtype of autocast if it is on, as for ``F.conv2d``: float64 and integers stay.

    Args:
        tensors: all on one device.
        once: keep casts of parameters until the block of autocast ends. Not for programs that are traced.
    """
    device = next(t.device.type for t in tensors if t is not None)
    if device == "meta" or not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [_cast(t, dtype, once) for t in tensors]


def _cast(t: Tensor | None, dtype: torch.dtype, once: bool) -> Tensor | None:
    if t is None or not t.is_floating_point() or t.dtype == torch.float64:
        return t
    return _kept(t, dtype) if once and _may_be_kept(t) else t.to(dtype)


def _may_be_kept(t: Tensor) -> bool:
    """Return True for a tensor whose cast torch keeps: a parameter in fp32 that is trained; outside of transforms."""
    if type(t) is not nn.Parameter or not t.requires_grad or t.dtype != torch.float32 or t.is_inference():
        return False
    return not torch._C._are_functorch_transforms_active()


def _kept(parameter: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the cast of a parameter: that of this block, unless it has no gradient, or the parameter has changed."""
    global _block
    if _block is None or _block() is None:
        _casts.clear()
        _block = _reference_until_block_ends(parameter.device)
    state = parameter.data_ptr(), parameter._version, dtype
    _, before, kept = _casts.get(id(parameter), (None, None, parameter))
    if before != state or (torch.is_grad_enabled() and not kept.requires_grad):
        kept = parameter.to(dtype)
        if _block() is not None and type(kept) is Tensor:  # another type is of a mode that may end earlier
            _casts[id(parameter)] = parameter, state, kept
    return kept


def _reference_until_block_ends(device: torch.device) -> weakref.ref:
    """Return a reference to a tensor among torch's casts, with which ours are freed; dead if torch keeps none.

    A product saves the cast for its derivative. Modes and hooks around the call, as of checkpoints, do not see it.
    """
    references: list[weakref.ref] = []

    def refer(saved: Tensor) -> Tensor:
        references.append(weakref.ref(saved, lambda _: _casts.clear()))
        return saved

    own_hooks = saved_tensors_hooks(refer, lambda saved: saved)
    with torch.inference_mode(False), torch.enable_grad(), torch._C._DisableTorchDispatch(), own_hooks:
        nothing = torch.empty(0, 0, dtype=torch.float32, device=device, requires_grad=True)
        torch.mm(nothing, nothing)
    return references[0]
