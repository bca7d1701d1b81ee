"""A trained run to tidy tables, through analysis.

Everything lands in one long table (study, variant, seed, layer, measure, null, groups, value, unit): ``null`` is empty
for what was measured and names the null otherwise. Arrays that figures need (filters, correlation matrices) go beside
it.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from analysis import colour, correlation
from analysis.responses import collect_responses
from experiments.runs import Run, write_atomic
from experiments.train import EVALUATION_BATCH, Setting
from gconv.cost import count_cost, measure_latencies, measure_peak_memory
from gconv.partition import Partition
from gconv.wiring import LayerWiring, trace_wiring

COLUMNS = ["study", "variant", "seed", "layer", "measure", "null", "groups", "value", "unit"]
VERSION = 2  # raise when what is measured changes: finished runs are measured again
LAYERS_DRAWN = 6  # convolutions, evenly spaced, whose correlation matrices are kept for the figures
LATENCY_BATCH = 32
LATENCY_REPEATS = 15


@dataclass(frozen=True)
class Measures:
    """What is measured on each trained network.

    Args:
        images: test images, evenly spaced, whose responses are collected.
        permutations: draws of each label permutation test.
    """

    images: int = 1000
    permutations: int = 2000

    def __post_init__(self) -> None:
        for name in ("images", "permutations"):
            if getattr(self, name) < 1:
                raise ValueError(f"measures.{name}={getattr(self, name)}: must be at least 1")


class Rows:
    """Rows of the long table about one run."""

    def __init__(self, study: str, variant: str, seed: int | None) -> None:
        self._fixed = {"study": study, "variant": variant, "seed": seed}
        self._rows: list[dict[str, Any]] = []
        self.groups: dict[str, str] = {}  # how each layer is cut

    def add(self, measure: str, value: float, unit: str = "", layer: str = "", null: str = "") -> None:
        """Append one value."""
        of_layer = {"layer": layer, "groups": self.groups.get(layer, "")}
        self._rows.append(
            {**self._fixed, **of_layer, "measure": measure, "null": null, "value": float(value), "unit": unit}
        )

    def table(self) -> pd.DataFrame:
        """The rows so far."""
        return pd.DataFrame(self._rows, columns=pd.Index(COLUMNS))


def measure_run(
    rows: Rows, run: Run, trained: nn.Module, untrained: nn.Module, setting: Setting, measures: Measures
) -> dict[str, np.ndarray]:
    """Measure one trained network and the same network untrained; returns the arrays that figures need."""
    result = run.result
    assert result is not None
    for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
        rows.add(name, result[name], "fraction" if "accuracy" in name else "nats")
    rows.add("training_time", result["seconds"], "s")
    size = setting.views.crop_size
    cost = count_cost(trained, (3, size, size))
    rows.add("parameters", cost.parameters, "parameters")
    rows.add("macs", cost.macs, "MACs")
    rows.add("activations", cost.activations, "elements")
    wiring = trace_wiring(trained, (3, size, size))
    for name, layer in wiring.items():
        rows.groups[name] = str(Partition(tuple(Counter(layer.computed_by).values())))
    arrays = _measure_correlation(rows, trained, untrained, wiring, setting, measures)
    return arrays | _measure_colour(rows, trained, wiring, measures)


def groupings(wiring: LayerWiring) -> dict[str, list[int]]:
    """How a layer's filters fall into several groups: by what computes and, where that differs, by what reads them.

    Groups of one filter each, as around a depthwise convolution, are left out: there is no pair within a group.
    """
    found = {}
    if _several_groups(wiring.computed_by):
        found["computed"] = list(wiring.computed_by)
    reading = wiring.reading_groups()
    known = [group for group in reading if group is not None]
    if len(known) == len(reading) and _several_groups(known) and known != found.get("computed"):
        found["read"] = known
    return found


def _several_groups(labels: Sequence[int]) -> bool:
    return 1 < len(set(labels)) < len(labels)


def _measure_correlation(
    rows: Rows,
    trained: nn.Module,
    untrained: nn.Module,
    wiring: dict[str, LayerWiring],
    setting: Setting,
    measures: Measures,
) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    drawn = {list(wiring)[k] for k in np.linspace(0, len(wiring) - 1, LAYERS_DRAWN).round().astype(int)}
    for null, model in (("", trained), ("untrained", untrained)):
        model.to(setting.device)
        gathered = collect_responses(model, _test_batches(setting, measures.images), list(wiring))
        for layer, statistics in gathered.items():
            corr = correlation.correlation_matrix(statistics.covariance)
            alive = np.isfinite(corr) & ~np.eye(len(corr), dtype=bool)
            rows.add("mean_abs_correlation", np.abs(corr[alive]).mean() if alive.any() else np.nan, "|r|", layer, null)
            rows.add("dead_filters", int(np.isnan(np.diag(corr)).sum()), "filters", layer, null)
            ways = groupings(wiring[layer])
            for side, labels in ways.items():
                contrast = correlation.group_contrast(corr, labels)
                rows.add(f"within_{side}", contrast.within, "|r|", layer, null)
                rows.add(f"between_{side}", contrast.between, "|r|", layer, null)
                rows.add(f"ratio_{side}", contrast.ratio, "", layer, null)
                if not null and np.isfinite(contrast.difference):
                    p = correlation.contrast_test(corr, labels, measures.permutations)
                    rows.add(f"within_over_between_{side}_p", p, "p", layer, "labels permuted")
            if not null and layer in drawn:
                arrays[f"correlation {layer}"] = corr.astype(np.float32)
                for side, labels in ways.items():
                    arrays[f"groups {layer} {side}"] = np.asarray(labels)
    return arrays


def _measure_colour(
    rows: Rows, model: nn.Module, wiring: dict[str, LayerWiring], measures: Measures
) -> dict[str, np.ndarray]:
    layer, first = next(iter(wiring.items()))
    weight = model.get_submodule(layer).weight
    if not isinstance(weight, Tensor) or weight.dim() != 4 or weight.shape[1] != 3:
        return {}  # the network's first convolution does not read RGB alone
    filters = weight.detach().float().cpu().numpy()
    index, learned = colour.colour_index(filters), colour.learned(filters)
    rows.add("learned_filters", learned.mean(), "fraction", layer)
    arrays = {"filters": filters, "colour_index": index, "learned": learned}
    if learned.any():
        rows.add("colour_index", index[learned].mean(), "fraction", layer)
    labels = groupings(first).get("read")
    if labels is not None:
        arrays["filter_groups"] = np.asarray(labels)
        # Rule, fixed beforehand: filters that never left their initialisation are noise, which looks coloured, and
        # are left out.
        kept, group = index[learned], np.asarray(labels)[learned]
        if len(set(group.tolist())) > 1:
            rows.add("colour_difference", colour.colour_difference(kept, group), "fraction", layer)
            p = colour.colour_difference_test(kept, group, measures.permutations)
            rows.add("colour_difference_p", p, "p", layer, "labels permuted")
    return arrays


def _test_batches(setting: Setting, images: int) -> Iterator[Tensor]:
    count = len(setting.dataset.test.labels)
    taken = min(images, count)
    index = torch.arange(taken) * count // taken  # over all of them: they lie class after class
    for part in index.split(EVALUATION_BATCH):
        x = setting.test_inputs(part)[0]
        yield x.float()


def measure_speed(rows: dict[str, Rows], models: dict[str, nn.Module], settings: dict[str, Setting]) -> None:
    """Latency of inference and peak memory of a training step, all variants in turn, each in its own setting."""
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
    for name in models:
        peak = measure_peak_memory(partial(step, name), device)
        rows[name].add("peak_memory", peak, f"bytes per training step of {LATENCY_BATCH}")


def save_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV, whole or not at all."""
    write_atomic(path, lambda file: file.write(table.to_csv(index=False).encode()))


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays as a compressed npz, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(path, lambda file: file.write(buffer.getvalue()))
