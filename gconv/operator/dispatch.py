"""Dispatch of the three bilinear ops of a grouped convolution to the chosen kernels; no autograd here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import local
from typing import NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling

from gconv.kernels import DIFFERENTIABLE, KERNELS, NAMES, OPS, find, native, refusal, runnable
from gconv.kernels.aten import is_channels_last, mean_and_variance
from gconv.kernels.choose import MAX_CACHED, cached_choice, choose, on_forget, pixel_bits, together
from gconv.kernels.choose import forget as forget
from gconv.kernels.geometry import Geometry

PIXEL_BITS = range(4, 32, 2)  # pixel_bits of inputs
KERNEL_VARIABLE = "GCONV_KERNEL"  # environment variable: computes everything with one kernel, for debugging


class _Forced(local):
    """What is forced on all computations of a thread: a kernel, or a kernel of its own for each op."""

    name: str | None = os.environ.get(KERNEL_VARIABLE) or None
    separate: bool = False


_forced = _Forced()


@contextmanager
def forced_kernel(name: str) -> Iterator[None]:
    """Compute every grouped convolution of this thread inside the block with one kernel, to compare kernels.

    The derivatives of these computations use the same kernel, in any thread of torch, unless that thread forces another
    kernel.

    Args:
        name: one of the kernels, such as ``"loop"``.

    Raises:
        ValueError: there is no kernel of this name.
    """
    if name not in NAMES:
        raise ValueError(f"no kernel {name!r}; there are {', '.join(NAMES)}")
    before, _forced.name = _forced.name, name
    try:
        yield
    finally:
        _forced.name = before


@contextmanager
def separate_ops() -> Iterator[None]:
    """Compute each op of this thread inside the block with the kernel chosen for it, whatever was measured of steps."""
    before, _forced.separate = _forced.separate, True
    try:
        yield
    finally:
        _forced.separate = before


def forced_name() -> str | None:
    """Return the name of the kernel forced on this thread; None if none is."""
    return _forced.name


# Called with the name of an op, a tensor with the dtype, device and layout of the op, geometry and size of the input.
Watcher = Callable[[str, Tensor, Geometry, Sequence[int]], None]
_watcher: Watcher | None = None


def watch(watcher: Watcher | None) -> Watcher | None:
    """Call ``watcher`` for every op before its kernel is chosen, unless one is forced; return the previous watcher."""
    global _watcher
    before, _watcher = _watcher, watcher
    return before


def _show(op: str, like: Tensor, geometry: Geometry, input_size: Sequence[int]) -> None:
    if _watcher is not None and _forced.name is None:
        _watcher(op, like, geometry, input_size)


def show_layer(x: Tensor, weight: Tensor, geometry: Geometry) -> None:
    """Call the watcher for all ops that a call of a layer needs: the forward pass, and the required gradients."""
    if _watcher is None or x.dim() != 4:
        return
    wanted = [torch.is_grad_enabled() and t.requires_grad for t in (x, weight)]
    for op, needed in zip((*OPS, "step"), (True, *wanted, all(wanted)), strict=True):
        if needed:
            _show(op, x, geometry, x.shape[2:])


class Kernels(NamedTuple):
    """Functions that compute the three ops of a layer.

    Two more exist for some layers: ``together``, a forward pass that torch differentiates, if that is as fast;
    ``statistics``, a forward pass whose epilogue computes mean and variance of the result.
    """

    conv2d: Callable[..., Tensor]
    input_gradient: Callable[..., Tensor]
    weight_gradient: Callable[..., Tensor]
    together: Callable[..., Tensor] | None
    statistics: Callable[..., tuple[Tensor, Tensor, Tensor]] | None


def kernels_for(x: Tensor, geometry: Geometry, input_size: Sequence[int]) -> Kernels:
    """Return the kernels of a layer.

    Args:
        x: the input, or the gradient of the output. The choice depends on its batch size, dtype, device and layout.
        geometry: geometry of the layer.
        input_size: (H, W) of the input.

    Raises:
        ValueError: a kernel is forced that cannot run here.
    """
    if _forced.name is not None:
        name = forced(geometry, x.dtype, x.device) or ""
        return _named((name,) * 3, name if name in DIFFERENTIABLE else None)
    bits = pixel_bits(x.shape[0], input_size[0], input_size[1])
    kernels = _chosen(geometry, x.dtype, x.device, is_channels_last(x), bits, torch.get_num_threads())
    return kernels._replace(together=None) if _forced.separate else kernels


def is_left_to_aten(x: Tensor, geometry: Geometry) -> bool:
    """Return True if one call of ATen's convolution on this input is what would be computed, gradients included.

    With small layers the Python code of the operator takes as long as the convolution, so the caller can skip it.
    """
    if is_compiling() or type(x) is not Tensor or _watcher is not None or _forced.name is not None or _forced.separate:
        return False
    if torch._C._is_any_autocast_enabled() or torch._C._is_tracing():  # the dtype is another; sizes are tensors
        return False
    # Comparing with the last input is faster than the cache: it hashes neither the geometry nor a device.
    last, threads = _last_inputs.get(id(geometry), _NO_INPUT), torch.get_num_threads()
    if x.shape == last[0] and x.stride() == last[1] and x.dtype is last[2] and threads == last[3] and x.is_cpu:
        return last[4]
    case = x.shape, x.stride(), x.dtype, threads
    left = _is_left_to_aten(geometry, x.device, *case)
    if x.is_cpu:
        if len(_last_inputs) >= MAX_CACHED:
            _last_inputs.clear()
        _last_inputs[id(geometry)] = *case, left, geometry
    return left


# By the id of the geometry, which is held so that no other gets its id: the last input on the CPU, and the answer.
_last_inputs: dict[int, tuple[torch.Size, tuple[int, ...], torch.dtype, int, bool, Geometry | None]] = {}
_NO_INPUT = torch.Size(), (), torch.bool, 0, False, None
on_forget.append(_last_inputs.clear)


@cached_choice
def _is_left_to_aten(
    geometry: Geometry,
    device: torch.device,
    shape: torch.Size,
    stride: tuple[int, ...],
    dtype: torch.dtype,
    threads: int,
) -> bool:
    if not geometry.is_uniform or len(shape) != 4 or native.is_kept(shape[0], geometry, dtype):
        return False
    last = is_channels_last(torch.empty_strided(shape, stride, device="meta"))
    case = geometry, dtype, device, last, pixel_bits(shape[0], *shape[2:])
    return choose("conv2d", *case).kernel == together(*case) == "native"


def transformable_kernels(geometry: Geometry) -> Kernels:
    """Return ATen kernels, which all have rules for ``torch.func``."""
    name = "native" if geometry.is_uniform else "loop"
    return _named((name,) * 3, name)


@cached_choice
def _chosen(
    geometry: Geometry, dtype: torch.dtype, device: torch.device, channels_last: bool, bits: int, threads: int
) -> Kernels:
    case = (geometry, dtype, device, channels_last, bits)
    return _named(tuple(choose(op, *case).kernel for op in OPS), together(*case))


@cached_choice
def _named(names: tuple[str, ...], one: str | None) -> Kernels:
    forward, input_gradient, weight_gradient = (getattr(find(name), op) for name, op in zip(names, OPS, strict=True))
    statistics = getattr(find(names[0]), "conv2d_statistics", None)
    return Kernels(forward, input_gradient, weight_gradient, None if one is None else find(one).conv2d, statistics)


def forced(geometry: Geometry, dtype: torch.dtype, device: torch.device) -> str | None:
    """Return the name of the forced kernel after checking it; None if none is forced.

    Raises:
        ValueError: there is no such kernel, or it cannot compute the layer; the message names those that can.
    """
    name = _forced.name
    if name is None:
        return None
    if name not in NAMES:
        raise ValueError(f"{KERNEL_VARIABLE}={name}: no such kernel; there are {', '.join(NAMES)}")
    why_not = refusal(name, geometry, dtype, device)
    if why_not is not None:
        others = ", ".join(runnable(geometry, dtype, device))
        raise ValueError(f"kernel {name!r} cannot compute {geometry}: {why_not}; {others} can")
    return name


def conv2d(x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str = "none") -> Tensor:
    """Compute the forward pass, (N, O, H', W')."""
    if x_NCHW.is_complex():  # ATen computes it by convolutions of real numbers
        return transformable_kernels(geometry).conv2d(x_NCHW, weight, bias, geometry, activation)
    _show("conv2d", x_NCHW, geometry, x_NCHW.shape[2:])
    return kernels_for(x_NCHW, geometry, x_NCHW.shape[2:]).conv2d(x_NCHW, weight, bias, geometry, activation)


def _complex_by_three_real(op: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """Compute a bilinear op of complex numbers by three of real ones, as ATen's forward pass does."""
    a, b = a.resolve_conj(), b.resolve_conj()
    real = op(a.real.contiguous(), b.real.contiguous())
    imaginary = op(a.imag.contiguous(), b.imag.contiguous())
    sums = op(a.real + a.imag, b.real + b.imag)
    return torch.complex(real - imaginary, sums - real - imaginary)


def conv2d_statistics(
    x_NCHW: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the forward pass, and mean and biased variance (O,) of every output channel, at least in fp32."""
    _show("conv2d", x_NCHW, geometry, x_NCHW.shape[2:])
    kernels = kernels_for(x_NCHW, geometry, x_NCHW.shape[2:])
    if kernels.statistics is not None:
        return kernels.statistics(x_NCHW, weight, bias, geometry)
    y = kernels.conv2d(x_NCHW, weight, bias, geometry)
    return y, *mean_and_variance(y)


def has_epilogue(geometry: Geometry, dtype: torch.dtype, device: torch.device) -> bool:
    """Return True if the forward pass has an epilogue (ReLU or statistics) for some size of input.

    Called while a program is traced, when sizes may be unknown.
    """
    name = forced(geometry, dtype, device)
    names = {name} if name else {choose("conv2d", geometry, dtype, device, True, bits).kernel for bits in PIXEL_BITS}
    return any(hasattr(find(name), "conv2d_statistics") for name in names)


def is_left_to_compiler(geometry: Geometry, dtype: torch.dtype, device: torch.device) -> bool:
    """Return True if a compiler gets ATen's convolution of equal groups, which it fuses and tunes itself.

    False if a kernel that replaces ATen is chosen for some size: the band kernel, or fp32 instead of emulated 16-bit
    types. Called while a program is traced.
    """
    name = forced(geometry, dtype, device)
    if name is not None:
        return name == "native"
    cases = ((op, last, bits) for op in OPS for last in (True, False) for bits in PIXEL_BITS)
    return all(
        not KERNELS[choose(op, geometry, dtype, device, last, bits).kernel].replaces_aten for op, last, bits in cases
    )


# As torch.compiler.assume_constant_result does, which would load the whole compiler: seconds.
for _function in (forced_name, has_epilogue, is_left_to_compiler):
    _function._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def input_gradient(dy_NOHW: Tensor, weight: Tensor, geometry: Geometry, input_size: Sequence[int]) -> Tensor:
    """Compute the gradient of the input, (N, C, H, W) with (H, W) = ``input_size``."""
    if dy_NOHW.is_complex():
        return _complex_by_three_real(lambda dy, w: input_gradient(dy, w, geometry, input_size), dy_NOHW, weight)
    _show("input_gradient", dy_NOHW, geometry, input_size)
    return kernels_for(dy_NOHW, geometry, input_size).input_gradient(dy_NOHW, weight, geometry, input_size)


def weight_gradient(dy_NOHW: Tensor, x_NCHW: Tensor, geometry: Geometry) -> Tensor:
    """Compute the gradient of the weight, of ``geometry.weight_shape``."""
    if dy_NOHW.is_complex():
        return _complex_by_three_real(lambda dy, x: weight_gradient(dy, x, geometry), dy_NOHW, x_NCHW)
    _show("weight_gradient", x_NCHW, geometry, x_NCHW.shape[2:])
    return kernels_for(x_NCHW, geometry, x_NCHW.shape[2:]).weight_gradient(dy_NOHW, x_NCHW, geometry)
