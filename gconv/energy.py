"""Energy of a computation, on hardware that counts it.

NVIDIA GPUs since Volta have a counter (NVML). Processors with RAPL have one for the whole package, which also counts
everything else that runs there. On other hardware energy is neither measured nor estimated.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from gconv.kernels.machine import synchronize

RAPL = Path("/sys/class/powercap")
Meter = Callable[[], float]  # returns joules since some moment


def energy_meter(device: torch.device, powercap: Path = RAPL) -> Meter | None:
    """Return a function that reads the energy counter of a device in joules; None if it has none that may be read."""
    return _nvml_meter(device) if device.type == "cuda" else _rapl_meter(powercap) if device.type == "cpu" else None


def measure_energies(
    calls: Mapping[str, Callable[[], object]],
    device: torch.device,
    meter: Meter,
    repeats: int = 5,
    seconds: float = 0.3,
) -> dict[str, float]:
    """Return the joules of one call of each function: the median of several rounds, all functions in turn.

    Args:
        calls: functions to measure, by name; each is called once beforehand to warm up.
        device: synchronised before the counter is read.
        meter: as ``energy_meter`` returns it.
        repeats: number of rounds.
        seconds: duration of the repeated calls of one function in one round: counters advance in steps of up to 0.1 s.
    """
    joules: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            synchronize(device)
            start, before, times = time.perf_counter(), meter(), 0
            while not times or time.perf_counter() - start < seconds:
                call()
                times += 1
                synchronize(device)
            joules[name].append((meter() - before) / times)
    return {name: statistics.median(values) for name, values in joules.items()}


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
    """Return a reader of the sum over packages. Each counter restarts from zero at its own largest value."""
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
