"""Parts that the launches of all band programs share: images as they read them, precision, device, and the programs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

WARPS = 4  # more have been seen to compile loops over flattened taps wrongly (pytorch #173068)
PIXELS = 2**31 - 2**16  # pixel numbers have 32 bits


def programs() -> Any:
    """Return the kernels: imported when first needed, so that all else works without Triton."""
    from gconv.kernels.band import programs

    return programs


def launch(program: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Launch a program on the current device.

    In a program that torch traces the launch becomes a node that Inductor reads, and the tables constants. The Triton
    program is built first, so that one that cannot be built fails here, as in eager mode.
    """
    first = arguments[0]
    if not isinstance(first, FakeTensor):
        program[grid](*arguments, **options)
        return
    build(program, grid, *arguments, **options)
    mode = first.fake_mode
    before, mode.allow_non_fake_inputs = mode.allow_non_fake_inputs, True
    try:
        torch.library.wrap_triton(program)[grid](*arguments, **options)
    finally:
        mode.allow_non_fake_inputs = before


def build(program: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Compile and load a program without a launch; of tensors only the dtypes count, pointers are taken as aligned."""
    kinds = (argument.dtype if isinstance(argument, Tensor) else argument for argument in arguments)
    program.warmup(*kinds, grid=grid, **options)[(1, 1, 1)]


def on(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def dense(x_NCHW: Tensor, interpreted: bool) -> Tensor:
    """``x_NCHW`` dense in channels_last. The interpreter multiplies the bits of bfloat16: for it they are widened."""
    if interpreted and x_NCHW.dtype == torch.bfloat16:
        x_NCHW = x_NCHW.float()
    return x_NCHW.contiguous(memory_format=torch.channels_last)


def precision(dtype: torch.dtype) -> str:
    """tf32 where torch computes fp32 convolutions in it."""
    allowed = torch.backends.cudnn.conv.fp32_precision == "tf32"  # pyright: ignore[reportAttributeAccessIssue]
    return "tf32" if dtype == torch.float32 and allowed else "ieee"


def check_pixels(shape_NCHW: torch.Size) -> None:
    """Raise ``ValueError`` for more pixels than one call can number."""
    batch, _, height, width = shape_NCHW
    if batch * height * width > PIXELS:
        raise ValueError(
            f"{batch} images of {height}×{width}: kernel 'band' takes at most {PIXELS} pixels at once; cut the batch"
        )


def is_wide(*images: Tensor) -> bool:
    """Return True if offsets need 64 bits: also those before the image, of a place that is not read."""
    return any(image.numel() + 2 * image.shape[1] * image.shape[2] * image.shape[3] >= 2**31 for image in images)
