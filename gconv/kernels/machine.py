"""Identity of the machine for which measured times are valid."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache

import torch

# oneDNN reads these when it is loaded; the values name instruction sets, from the least to the greatest.
LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
WITHOUT_AVX512 = {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2"}
WITHOUT_BF16 = {*WITHOUT_AVX512, "AVX512_CORE", "AVX512_CORE_VNNI"}


@dataclass(frozen=True)
class Machine:
    """A device, with the software that decides its speed.

    Attributes:
        device: name of the device, as reported by the hardware.
        family: instruction set or compute capability: ``cpu-avx512-bf16``, ``cuda-sm90``.
        torch: version of torch.
        threads: threads of a CPU; 0 for other devices.
    """

    device: str
    family: str
    torch: str
    threads: int

    def __str__(self) -> str:
        """Return a text such as ``AMD EPYC (cpu-avx512-bf16, 2 threads), torch 2.13.0``."""
        threads = f", {self.threads} thread{'s' * (self.threads > 1)}" if self.threads else ""
        return f"{self.device} ({self.family}{threads}), torch {self.torch}"


def this_machine(device: torch.device) -> Machine:
    """Return the machine of a device, with the number of threads of the calling thread."""
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    return Machine(device_name(device), device_family(device), torch.__version__, threads)


@cache
def device_name(device: torch.device) -> str:
    """Return the name of a device as reported by the hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "CPU"


def device_family(device: torch.device) -> str:
    """Return the family of a device: CPUs by the vector units in use, GPUs by their compute capability."""
    if device.type == "cuda":
        return "cuda-sm{}{}".format(*torch.cuda.get_device_capability(device))
    if device.type != "cpu":
        return device.type
    if not _is_x86():
        return f"cpu-{platform.machine().lower()}"
    units = torch.backends.cpu.get_cpu_capability().lower()
    if units == "avx512" and _limit() in WITHOUT_AVX512:
        units = "avx2"
    if units == "avx512":
        units = "amx" if has_matrix_units() else "avx512-bf16" if computes(torch.bfloat16) else units
    return f"cpu-{units}"


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def has_matrix_units() -> bool:
    """Return True if this CPU has matrix units (AMX) and oneDNN may use them."""
    return torch.cpu._is_amx_tile_supported() and (_limit() in ("", "ALL", "DEFAULT") or "AMX" in _limit())


def computes(dtype: torch.dtype) -> bool:
    """Return True if this CPU computes in a 16-bit dtype and oneDNN may use that; always True if it is not x86."""
    if not _is_x86():
        return True
    if dtype == torch.bfloat16:
        supported = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        return supported and _limit() not in WITHOUT_BF16
    return torch.cpu._is_amx_fp16_supported() and has_matrix_units()


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def _limit() -> str:
    """Return the greatest instruction set that oneDNN may use, in capitals; empty if there is no limit."""
    return next((os.environ[name] for name in LIMITS if os.environ.get(name)), "").upper()
