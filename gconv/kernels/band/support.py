"""Layers and devices that the band kernel computes, its blockings, and the next kernel where Triton cannot build it."""

from __future__ import annotations

import os
import subprocess
import warnings
from collections.abc import Callable
from functools import lru_cache, wraps
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from gconv.kernels.aten import mean_and_variance
from gconv.kernels.band.launch import programs
from gconv.kernels.band.tiles import Blocking, blockings
from gconv.kernels.choose import forget, kernel_for, variant
from gconv.kernels.geometry import Geometry

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def refuses(geometry: Geometry, dtype: torch.dtype, device: torch.device | str) -> str | None:
    """Return why this kernel cannot compute a layer; None if it can."""
    if dtype not in DTYPES:
        return f"it computes in bfloat16, float16 and float32, not in {str(dtype).removeprefix('torch.')}"
    device = torch.device(device)
    if device.type not in ("cuda", "cpu"):
        return f"it runs on CUDA devices, not on {device.type}"
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "it runs on CUDA devices; on the CPU in Triton's interpreter alone (TRITON_INTERPRET=1)"
    return _no_triton(device) or failures.get((geometry, dtype, device))


@lru_cache
def _no_triton(device: torch.device) -> str | None:
    if find_spec("triton") is None:
        return "it needs Triton, which is not installed"
    if device.type == "cuda":
        try:
            capability = torch.cuda.get_device_capability(device)
        except (RuntimeError, AssertionError) as error:  # torch without CUDA, a computer without this device
            return f"torch finds no device {device}: {error}"
        if capability < (8, 0):
            return "it needs compute capability 8.0, not {}.{}".format(*capability)
    if device.type == "cpu" and not programs().INTERPRETED:
        return "on the CPU it needs TRITON_INTERPRET=1 before Triton is first imported"
    return None


def configs(geometry: Geometry, dtype: torch.dtype, device: torch.device | None = None) -> tuple[Blocking, ...]:
    """Return the blockings worth timing for a layer; the first is used where none is measured.

    Args:
        geometry: the layer.
        dtype: dtype of the computation.
        device: device whose shared memory they must fit; without one they may have any size.
    """
    return _configs(geometry, dtype.itemsize, None if device is None else _shared_memory(device))


@lru_cache(maxsize=4096)
def _configs(geometry: Geometry, itemsize: int, shared_memory: int | None) -> tuple[Blocking, ...]:
    candidates = blockings(geometry, itemsize)
    return tuple(b for b in candidates if shared_memory is None or b.shared_bytes(itemsize) <= shared_memory)


@lru_cache
def _shared_memory(device: torch.device) -> int | None:
    """Return the bytes of shared memory of a program; None without a limit."""
    if device.type != "cuda":
        return None
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", None)


failures: dict[tuple[Geometry, torch.dtype, torch.device], str] = {}


def or_the_next_kernel(op: Callable[..., Any]) -> Callable[..., Any]:
    """Have an op take the blocking that was measured as the fastest, else the first of ``configs`` that can be built.

    Where Triton cannot build the programs of a layer, the layer is refused from then on, and the next kernel taken. A
    blocking that is asked for is built, or Triton's error is raised.
    """
    name = op.__name__.removesuffix("_statistics")

    @wraps(op)
    def run(*arguments: Any, blocking: Blocking | None = None, **options: Any) -> Any:
        geometry = next(given for given in arguments if isinstance(given, Geometry))
        dtype, device = arguments[0].dtype, arguments[0].device
        if blocking is not None:
            return op(*arguments, blocking=blocking, **options)
        x = arguments[1] if name == "weight_gradient" else arguments[0]
        input_size = arguments[3] if name == "input_gradient" else x.shape[2:]
        fastest = variant("band", name, geometry, dtype, x, input_size)
        reason = "no blocking fits the device's shared memory"
        for fitting in sorted(configs(geometry, dtype, device), key=lambda blocking: str(blocking) != fastest):
            try:
                return op(*arguments, blocking=fitting, **options)
            except Exception as error:
                if not _cannot_build(error):
                    raise
                reason = " ".join(str(error).split()) or type(error).__name__
                if not _out_of_resources(error):
                    break
        failures[geometry, dtype, device] = f"Triton cannot build it: {reason[:300]}"
        warnings.warn(
            f"kernel 'band' for {geometry}: {failures[geometry, dtype, device]}; another is used", stacklevel=2
        )
        forget()
        arguments = tuple(given.to(dtype) if isinstance(given, Tensor) else given for given in arguments)
        result = getattr(kernel_for(name, geometry, dtype, x, input_size), name)(*arguments)
        result = result.to(options.get("dtype", result.dtype))
        return result if name == op.__name__ else (result, *mean_and_variance(result))

    return run


# Words in errors of Triton that have no class of their own: no C compiler, no driver, a pass of the compiler failed.
NOT_BUILT = ("C compiler", "libcuda.so", "active drivers", "PassManager::run failed", "kernel image")


def _cannot_build(error: Exception) -> bool:
    """Return True if an error is Triton's while it is imported or compiles, or of the C compiler that it calls."""
    if isinstance(error, ImportError | OSError | subprocess.CalledProcessError):
        return True
    from triton.errors import TritonError

    return isinstance(error, TritonError) or any(words in str(error) for words in NOT_BUILT)


def _out_of_resources(error: Exception) -> bool:
    from triton.runtime.errors import OutOfResources

    return isinstance(error, OutOfResources)
