"""Latency, energy and peak memory of the architectures of a study, measured in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

from analysis.tradeoff import DISTURBED
from experiments.measure.table import Item, Value
from experiments.training.run_context import RunContext
from gconv.cost import Latency, measure_latencies, measure_peak_memory
from gconv.energy import energy_meter, measure_energies

LATENCY_BATCH = 32
LATENCY_REPEATS = 15
TRIES = 4  # maximum number of times that a disturbed measurement is repeated
WAIT_S = 2.0  # between two tries


def measure_speed(models: dict[str, nn.Module], run_contexts: dict[str, RunContext]) -> dict[str, list[Item]]:
    """Measure latency and, where the hardware has a meter, energy of inference; peak memory of a training step.

    The variants take turns, each in its own run_context. Times that other work disturbed are measured again.

    Args:
        models: network of each variant; moved to the device in place.
        run_contexts: images, precision and device of each variant.

    Returns:
        The values of each variant.
    """
    inputs, device = {}, next(iter(run_contexts.values())).device
    for name, run_context in run_contexts.items():
        size = run_context.views.crop_size
        x = torch.randn(LATENCY_BATCH, 3, size, size, device=run_context.device)
        inputs[name] = x.to(memory_format=torch.channels_last)
        models[name].to(run_context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def infer(name: str) -> None:
        with torch.no_grad(), run_contexts[name].autocast():
            models[name].eval()(inputs[name])

    def step(name: str) -> None:
        with run_contexts[name].autocast():
            loss = models[name].train()(inputs[name]).float().sum()
        loss.backward()
        models[name].zero_grad(set_to_none=True)

    items: dict[str, list[Item]] = {name: [] for name in models}
    for name, latency in _quietest({n: partial(infer, n) for n in models}, device).items():
        for end, seconds in (("", latency.median), ("_lower", latency.lower), ("_upper", latency.upper)):
            items[name].append(Value(f"latency{end}", seconds / LATENCY_BATCH * 1e3, "ms per image"))
    meter = energy_meter(device)
    if meter is not None:
        for name, joules in measure_energies({n: partial(infer, n) for n in models}, device, meter).items():
            items[name].append(Value("energy", joules / LATENCY_BATCH, "J per image"))
    for name in models:
        peak = measure_peak_memory(partial(step, name), device)
        items[name].append(Value("peak_memory", peak, f"bytes per training step of {LATENCY_BATCH}"))
    return items


def _quietest(calls: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, Latency]:
    """Return the first measurement that nothing disturbed, else the one that was disturbed least."""
    best: dict[str, Latency] = {}
    for attempt in range(TRIES):
        if attempt:
            time.sleep(WAIT_S)
        timed = measure_latencies(calls, device, LATENCY_REPEATS)
        if not best or _spread(timed) < _spread(best):
            best = timed
        if _spread(best) <= DISTURBED:
            break
    return best


def _spread(latencies: Mapping[str, Latency]) -> float:
    """Return the largest interquartile range of a network's calls, as a share of their median."""
    return max((each.upper - each.lower) / each.median for each in latencies.values())
