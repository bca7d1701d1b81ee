"""Latency, energy and peak memory of a study's architectures, side by side."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from experiments.measure.table import Rows
from experiments.training.setting import Setting
from gconv.cost import measure_latencies, measure_peak_memory
from gconv.energy import energy_meter, measure_energies

LATENCY_BATCH = 32
LATENCY_REPEATS = 15


def measure_speed(rows: dict[str, Rows], models: dict[str, nn.Module], settings: dict[str, Setting]) -> None:
    """Latency and, where the hardware tells it, energy of inference; peak memory of a training step.

    All variants in turn, each in its own setting.
    """
    inputs, device = {}, next(iter(settings.values())).device
    for name, setting in settings.items():
        size = setting.views.crop_size
        x = torch.randn(LATENCY_BATCH, 3, size, size, device=setting.device)
        inputs[name] = x.to(memory_format=torch.channels_last)
        models[name].to(setting.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def infer(name: str) -> None:
        with torch.no_grad(), settings[name].autocast():
            models[name].eval()(inputs[name])

    def step(name: str) -> None:
        with settings[name].autocast():
            loss = models[name].train()(inputs[name]).float().sum()
        loss.backward()
        models[name].zero_grad(set_to_none=True)

    for name, latency in measure_latencies({n: partial(infer, n) for n in models}, device, LATENCY_REPEATS).items():
        for measure, seconds in (
            ("latency", latency.median),
            ("latency_lower", latency.lower),
            ("latency_upper", latency.upper),
        ):
            rows[name].add(measure, seconds / LATENCY_BATCH * 1e3, "ms per image")
    meter = energy_meter(device)
    if meter is not None:
        for name, joules in measure_energies({n: partial(infer, n) for n in models}, device, meter).items():
            rows[name].add("energy", joules / LATENCY_BATCH, "J per image")
    for name in models:
        peak = measure_peak_memory(partial(step, name), device)
        rows[name].add("peak_memory", peak, f"bytes per training step of {LATENCY_BATCH}")
