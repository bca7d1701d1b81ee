"""Energy that a computation takes, where the hardware tells.

NVIDIA GPUs since Volta count it (NVML); processors with RAPL count that of the whole package, all that runs beside
included. Elsewhere nothing is measured, and nothing is estimated.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

RAPL = Path("/sys/class/powercap")
Meter = Callable[[], float]  # joules since some moment


def energy_meter(device: torch.device, powercap: Path = RAPL) -> Meter | None:
    """A reader of the device's energy counter; None where there is none, or it may not be read."""
    return _nvml_meter(device) if device.type == "cuda" else _rapl_meter(powercap) if device.type == "cpu" else None


def measure_energies(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    meter: Meter,
    repeats: int = 5,
    seconds: float = 0.3,
) -> dict[str, float]:
    """Joules of one call of each, the median of several turns, all calls in turn.

    Args:
        calls: what is measured; each is called once before, unmeasured.
        device: to wait for.
        meter: as of ``energy_meter``.
        repeats: turns.
        seconds: that a call is repeated for in each turn, since counters move in steps of up to 0.1 s.
    """
    joules: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            _wait(device)
            start, before, times = time.perf_counter(), meter(), 0
            while not times or time.perf_counter() - start < seconds:
                call()
                times += 1
                _wait(device)
            joules[name].append((meter() - before) / times)
    return {name: statistics.median(values) for name, values in joules.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _nvml_meter(device: torch.device) -> Meter | None:
    try:
        import pynvml  # type: ignore[import-not-found]  # nvidia-ml-py, optional
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3


def _rapl_meter(powercap: Path) -> Meter | None:
    """Sum over the packages; each counter starts again from zero at its own largest value."""
    packages = [zone for zone in sorted(powercap.glob("intel-rapl:*")) if zone.name.count(":") == 1]
    try:
        most = [int((zone / "max_energy_range_uj").read_text()) for zone in packages]
        last = [int((zone / "energy_uj").read_text()) for zone in packages]
    except (OSError, ValueError):
        return None
    used = [0] * len(packages)

    def read() -> float:
        for place, zone in enumerate(packages):
            now = int((zone / "energy_uj").read_text())
            used[place] += (now - last[place]) % (most[place] + 1)
            last[place] = now
        return sum(used) / 1e6

    return read if packages else None
