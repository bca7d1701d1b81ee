"""Latency, energy and peak memory of a study's architectures, side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

from analysis.tradeoff import DISTURBED
from experiments.measure.table import Rows
from experiments.training.run_context import RunContext
from gconv.cost import Latency, measure_latencies, measure_peak_memory
from gconv.energy import energy_meter, measure_energies

LATENCY_BATCH = 32
LATENCY_REPEATS = 15
TRIES = 4  # of a measurement that other work disturbs
WAIT_S = 2.0  # between them


def measure_speed(rows: dict[str, Rows], models: dict[str, nn.Module], contexts: dict[str, RunContext]) -> None:
    """Latency and, where the hardware tells it, energy of inference; peak memory of a training step.

    All variants in turn, each in its own setting. Where other work disturbed the calls, they are timed again.
    """
    inputs, device = {}, next(iter(contexts.values())).device
    for name, context in contexts.items():
        size = context.views.crop_size
        x = torch.randn(LATENCY_BATCH, 3, size, size, device=context.device)
        inputs[name] = x.to(memory_format=torch.channels_last)
        models[name].to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def infer(name: str) -> None:
        with torch.no_grad(), contexts[name].autocast():
            models[name].eval()(inputs[name])

    def step(name: str) -> None:
        with contexts[name].autocast():
            loss = models[name].train()(inputs[name]).float().sum()
        loss.backward()
        models[name].zero_grad(set_to_none=True)

    for name, latency in _quietest({n: partial(infer, n) for n in models}, device).items():
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


def _quietest(calls: Mapping[str, Callable[[], object]], device: torch.device) -> dict[str, Latency]:
    """The first measurement that nothing disturbed, else the one that was disturbed least."""
    best: dict[str, Latency] = {}
    for attempt in range(TRIES):
        if attempt:
            time.sleep(WAIT_S)
        found = measure_latencies(calls, device, LATENCY_REPEATS)
        if not best or _spread(found) < _spread(best):
            best = found
        if _spread(best) <= DISTURBED:
            break
    return best


def _spread(latencies: Mapping[str, Latency]) -> float:
    """The largest share of its median that the middle half of a network's calls spans."""
    return max((each.upper - each.lower) / each.median for each in latencies.values())
