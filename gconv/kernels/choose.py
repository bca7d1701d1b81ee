"""Choice of the kernel of each op: the fastest in the table of measured times, else ATen by rule.

Nothing is measured here. The choice is made once per layer and size of input, and cached. It is made for each op
separately: forward pass, gradient of the input and gradient of the weight may be computed by different kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gconv.kernels import CANDIDATES, DIFFERENTIABLE, OPS, find, machine, refusal
from gconv.kernels import table as tables
from gconv.kernels.aten import is_channels_last
from gconv.kernels.decomposition import HEAVY_NUMBERS
from gconv.kernels.geometry import Geometry
from gconv.kernels.machine import this_machine
from gconv.kernels.packing import cheapest_packing, equal_neighbours

EQUAL_TIME_RATIO = 1.03  # times within 3% count as equal
FEW_PIXELS = 7  # ``pixel_bits`` of at most 127 pixels
MACS_OF_A_CALL = 4e6  # multiply-accumulates in whose time a CPU begins and ends a call: 50 to 100 µs
APART = "apart"  # in the table: a step whose ops each have the kernel of their own choice


@dataclass(frozen=True)
class Choice:
    """Kernel chosen for one op.

    Attributes:
        kernel: name of the kernel.
        reason: the reason in words.
        seconds: time of each kernel on the measured layer that decided the choice; empty if none did.
        steps: distance of the sizes of that layer from these, in factors of two.
    """

    kernel: str
    reason: str
    seconds: tuple[tuple[str, float], ...] = ()
    steps: int = 0


MAX_CACHED = 16384  # choices
on_forget: list[Callable[[], None]] = []  # called by ``forget``


def cached_choice(function: Callable[..., Any]) -> Callable[..., Any]:
    """Cache the results of a function until ``forget``."""
    cached = lru_cache(maxsize=MAX_CACHED)(function)
    on_forget.append(cached.cache_clear)
    return cached


def pixel_bits(batch: int, height: int, width: int) -> int:
    """Return the bit length of batch × height × width, the size of an input on which the choice depends.

    Symbolic sizes of a traced program are unknown and give 0.
    """
    pixels = batch * height * width
    return pixels.bit_length() if type(pixels) is int else 0


def choose(
    op: str, geometry: Geometry, dtype: torch.dtype, device: torch.device, channels_last: bool, bits: int
) -> Choice:
    """Choose the kernel for one op of a layer.

    Args:
        op: ``conv2d``, ``input_gradient`` or ``weight_gradient``.
        geometry: geometry of the layer.
        dtype: dtype of the computation, with autocast.
        device: device of the computation.
        channels_last: True if the input is channels_last.
        bits: ``pixel_bits`` of the input.
    """
    return _choose(op, geometry, dtype, device, channels_last, bits, torch.get_num_threads())


@cached_choice
def _choose(
    op: str, geometry: Geometry, dtype: torch.dtype, device: torch.device, channels_last: bool, bits: int, threads: int
) -> Choice:
    if device.type == "meta":  # nothing is computed, costs are counted: these multiply connected channels alone
        return Choice("native" if geometry.is_uniform else "loop", "nothing is computed on the meta device")
    ruled = by_rule(op, geometry, dtype, device, bits)
    measured = _measured(op, geometry, dtype, device, channels_last, bits)
    if measured is None:
        return ruled
    seconds, times, steps = measured
    name, words = min(times, key=lambda name: times[name]), "the fastest measured"
    if times.get(ruled.kernel, math.inf) <= EQUAL_TIME_RATIO * times[name]:  # chance would decide
        name, words = ruled.kernel, "as fast as any measured"
    words += f" on a layer {steps} step{'s' * (steps > 1)} away in size" if steps else ""
    return Choice(name, words, tuple(seconds.items()), steps)


def together(
    geometry: Geometry, dtype: torch.dtype, device: torch.device, channels_last: bool, bits: int
) -> str | None:
    """Return the one ATen kernel that computes a whole training step, differentiated by torch; None for three kernels.

    One kernel has the least overhead, and computes both gradients in one call: it is preferred if it is equally fast.
    If no step is measured, it must be the choice of each op.
    """
    return _together(geometry, dtype, device, channels_last, bits, torch.get_num_threads())


@cached_choice
def _together(
    geometry: Geometry, dtype: torch.dtype, device: torch.device, channels_last: bool, bits: int, threads: int
) -> str | None:
    choices = [choose(op, geometry, dtype, device, channels_last, bits) for op in OPS]
    if device.type != "meta":
        measured = _measured("step", geometry, dtype, device, channels_last, bits)
        if measured is not None:
            times = measured[1]
            name = min((name for name in times if name in DIFFERENTIABLE), key=lambda name: times[name], default=APART)
            return name if name != APART and times[name] <= EQUAL_TIME_RATIO * min(times.values()) else None
    # The rule of the forward pass is that of inference, where a weight stays.
    names = {choice.kernel for op, choice in zip(OPS, choices, strict=True) if op != "conv2d" or choice.seconds}
    return names.pop() if len(names) == 1 and names <= DIFFERENTIABLE else None


def kernel_for(op: str, geometry: Geometry, dtype: torch.dtype, x: Tensor, input_size: Sequence[int]) -> ModuleType:
    """Return the kernel chosen for one op in a given dtype.

    Args:
        op, geometry, dtype: as in ``choose``.
        x: the input, or the gradient of the output: its batch, device and layout count.
        input_size: (H, W) of the input.
    """
    bits = pixel_bits(x.shape[0], *input_size)
    return find(choose(op, geometry, dtype, x.device, is_channels_last(x), bits).kernel)


def forget() -> None:
    """Clear every cached choice, and read the tables again at the next one."""
    tables.forget()
    for clear in on_forget:
        clear()


@contextmanager
def chosen_by(table: tables.Table) -> Iterator[None]:
    """Choose by one table alone inside the block, in all threads; later measurements do not count."""
    try:
        with tables.pinned(table):
            forget()
            yield
    finally:
        forget()


def variant(kernel: str, op: str, geometry: Geometry, dtype: torch.dtype, x: Tensor, input_size: Sequence[int]) -> str:
    """Return the variant of a kernel that was measured as its fastest for one op; "" where none was.

    Args:
        kernel: its name; a row of the table names a variant after it, ``band rows 64/32/64/32/2``.
        op, geometry, dtype, x, input_size: as in ``kernel_for``.
    """
    bits = pixel_bits(x.shape[0], *input_size)
    return _variant(kernel, op, geometry, dtype, x.device, is_channels_last(x), bits, torch.get_num_threads())


@cached_choice
def _variant(
    kernel: str,
    op: str,
    geometry: Geometry,
    dtype: torch.dtype,
    device: torch.device,
    channels_last: bool,
    bits: int,
    threads: int,
) -> str:
    seconds, _ = _nearest(op, geometry, dtype, device, channels_last, bits) or ({}, 0)
    variants = [name for name in seconds if name.partition(" ")[0] == kernel]
    return min(variants, key=lambda name: seconds[name], default="").partition(" ")[2]


def by_kernel(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds of each kernel: of one that was measured in several variants, the fastest."""
    fastest: dict[str, float] = {}
    for name, time in seconds.items():
        kernel = name.partition(" ")[0]
        fastest[kernel] = min(time, fastest.get(kernel, math.inf))
    return fastest


def _nearest(
    op: str, geometry: Geometry, dtype: torch.dtype, device: torch.device, channels_last: bool, bits: int
) -> tuple[dict[str, float], int] | None:
    """Return the measured seconds of all kernels on the nearest layer, and the distance of that layer."""
    if not bits:
        return None
    kind = tables.Kind.of(op, geometry, dtype, channels_last, bits)
    table = tables.load(this_machine(device))
    measured = tables.nearest(table, kind)
    return None if measured is None else (table[measured[0]], measured[1])


def _measured(
    op: str, geometry: Geometry, dtype: torch.dtype, device: torch.device, channels_last: bool, bits: int
) -> tuple[dict[str, float], dict[str, float], int] | None:
    """Return the table's entry for the nearest layer: seconds of all, of those allowed here, and its distance."""
    measured = _nearest(op, geometry, dtype, device, channels_last, bits)
    if measured is None:
        return None
    seconds = by_kernel(measured[0])
    usable = [n for n in seconds if n == APART or (n in CANDIDATES and not refusal(n, geometry, dtype, device))]
    return (seconds, {name: seconds[name] for name in usable}, measured[1]) if usable else None


def by_rule(op: str, geometry: Geometry, dtype: torch.dtype, device: torch.device, bits: int) -> Choice:
    """Return the kernel for a layer without measured times: one of ATen, by the bound of its speed.

    On a CPU zeros are not multiplied, and neighbouring groups of one size share a call. The exception is inference on
    few pixels, where zeros may cost less than calls and the weight with its zeros is kept. For one small image in fp32,
    torch computes one group by a matrix product, which is faster than oneDNN's convolution of several. Matrix units
    (AMX) and GPUs are fastest with one wide call.
    """
    silent = "no such layer is measured; by rule "
    on_cpu = device.type == "cpu"
    if on_cpu and dtype in (torch.bfloat16, torch.float16) and not machine.computes(dtype):
        return Choice("widened", f"{silent}fp32 inside, since this CPU only emulates {dtype}")
    if geometry.is_uniform:
        return Choice("native", f"{silent}ATen's own grouped convolution")
    if not on_cpu or (dtype == torch.bfloat16 and machine.has_matrix_units()):
        return Choice("packed", f"{silent}one call, with zeros between the groups")
    if op == "conv2d" and bits and _calls_cost_more_than_zeros(geometry, bits):
        return Choice("packed", f"{silent}one call, with zeros between the groups, for few pixels")
    if op != "conv2d" and dtype == torch.float32 and 0 < bits <= FEW_PIXELS and geometry.numbers >= HEAVY_NUMBERS:
        return Choice("loop", f"{silent}one matrix product per group, for few pixels and many weights")
    return Choice("merged", f"{silent}one call for equal groups, no zeros")


def _calls_cost_more_than_zeros(geometry: Geometry, bits: int) -> bool:
    """Return True if the calls of ``merged`` take longer than the zeros that ``packed`` multiplies in one call."""
    sizes = geometry.in_groups.sizes, geometry.out_groups.sizes
    zeros = cheapest_packing(*sizes).links - sum(geometry.links)
    taps, pixels = math.prod(geometry.kernel_size), 2 ** (bits - 0.5)
    macs = zeros * taps * pixels / math.prod(geometry.stride)
    return macs < MACS_OF_A_CALL * (len(equal_neighbours(*sizes)) - 1)
