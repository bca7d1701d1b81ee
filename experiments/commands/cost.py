"""The ``cost`` command: parameters, MACs and activations of a model, also before and after cutting it into groups."""

from __future__ import annotations

import csv
import json
import sys
from argparse import ArgumentError
from collections.abc import Mapping
from dataclasses import asdict
from textwrap import fill
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import nn

from experiments.commands.arguments import name_and_flags
from experiments.errors import UsageError
from experiments.models.named import add_model_arguments, build_named_model, full_name
from experiments.study.config import parser_error, strict_parser
from experiments.training.run_context import choose_device
from gconv.cost import Cost, count_cost, measure_latencies, measure_peak_memory
from gconv.regroup import Regrouped, RegroupedLayer, regroup

REPEATS = 21
GROUPS_WIDTH = 24  # characters of the column of groups; JSON and CSV have the groups in full


def main(arguments: list[str]) -> int:
    """Print the cost of a model; returns the exit code. Raises as ``print_cost``."""
    print_cost(*name_and_flags(arguments, "cost MODEL"))
    return 0


def print_cost(name: str, flags: list[str]) -> None:
    """Print the cost of ``alexnet``, or any other model of the suite, or ``resnet50`` of torchvision.

    Raises:
        UsageError: no such model, unknown flags or flags that exclude each other, arguments no network can have,
            groups that cut nothing, an input that does not fit.
    """
    name = full_name(name)
    parser = _parser(name)
    try:
        given = parser.parse_args(flags)
    except ArgumentError as error:
        raise UsageError(f"cost {name}: {parser_error(error, parser)}") from None
    _check(given)
    with torch.device("cpu" if given.measure else "meta"):  # to count, no model needs weights
        model = build_named_model(name, given)
    title = f"one image of {given.input_size} × {given.input_size} pixels"
    try:
        if given.regroup is None:
            _print_counted(name, model, given, title)
        else:
            _print_regrouped(name, model, given, title)
    except ValueError as error:
        raise UsageError(f"cost {name}: {error}") from None


def cost_help(name: str) -> str:
    """Return every flag of the cost of a model, with its type and meaning."""
    return _parser(full_name(name)).format_help()


def _print_counted(name: str, model: nn.Module, given: Namespace, title: str) -> None:
    counted = count_cost(model, (3, given.input_size, given.input_size))
    measured = _measure({name: model}, given)[name] if given.measure else {}
    if given.json:
        print(json.dumps({**_totals(counted), **measured, "layers": [asdict(c) for c in counted.layers]}, indent=1))
    elif given.csv:
        _print_csv([asdict(layer) for layer in counted.layers])
    else:
        print(f"{name}, {title}\n{counted.table(most=None)}")
        for key, value in measured.items():
            print(f"{key}: {value:.4g}")


def _print_regrouped(name: str, model: nn.Module, given: Namespace, title: str) -> None:
    regrouped = regroup(model, given.regroup, given.where)
    before, after = regrouped.costs((3, given.input_size, given.input_size))
    models = {"before": regrouped.original, "after": regrouped.model}
    measured = _measure(models, given) if given.measure else {"before": {}, "after": {}}
    rows = _rows(before, after, regrouped.changed)
    if given.json:
        totals = {"before": _totals(before) | measured["before"], "after": _totals(after) | measured["after"]}
        asked = {"regroup": given.regroup, "where": given.where}
        print(json.dumps({**asked, **totals, "layers": rows, "skipped": dict(regrouped.skipped)}, indent=1))
    elif given.csv:
        _print_csv(rows)
    else:
        print(regrouped_table(regrouped, before, after, f"{name} regrouped by {given.regroup}, {title}"))
        for key, value in measured["before"].items():
            print(f"{key}: {value:.4g} -> {measured['after'][key]:.4g}")


def regrouped_table(regrouped: Regrouped, before: Cost, after: Cost, title: str) -> str:
    """Return a line per layer that was cut, the sums over the whole model, and the layers skipped with the reason."""
    rows = [row for row in _rows(before, after, regrouped.changed) if row["groups"]]
    cut = [row | {"groups": row["groups"][:GROUPS_WIDTH]} for row in rows]
    total = {"name": "total", "groups": ""}
    for key, value in _totals(before).items():
        total |= {f"{key}_before": value, f"{key}_after": _totals(after)[key]}
    names = max(len(row["name"]) for row in [*cut, total])
    groups = max(len(row["groups"]) for row in [*cut, {"groups": "groups"}])
    change = f"  {'before':>14} -> {'after':>14}{'':8}"
    lines = [
        title,
        f"{'':<{names + groups + 2}}{'parameters':^{len(change)}}{'MACs':^{len(change)}}".rstrip(),
        f"{'layer':<{names}}  {'groups':<{groups}}{change}{change}".rstrip(),
    ]
    for row in [*cut, total]:
        changes = (_change(row[f"{key}_before"], row[f"{key}_after"]) for key in ("parameters", "macs"))
        lines.append(f"{row['name']:<{names}}  {row['groups']:<{groups}}{''.join(changes)}")
    lines.append(f"{len(cut)} of {len(cut) + len(regrouped.skipped)} convolutions regrouped")
    for reason in dict.fromkeys(regrouped.skipped.values()):
        skipped = [name for name, why in regrouped.skipped.items() if why == reason]
        text = f"not regrouped, {reason}: {', '.join(skipped)}"
        lines.append(fill(text, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))
    return "\n".join(lines)


def _change(before: int, after: int) -> str:
    return f"  {before:>14,} -> {after:>14,} {f'{after / before - 1:+.1%}' if before else '':>7}"


def _rows(before: Cost, after: Cost, changed: tuple[RegroupedLayer, ...]) -> list[dict[str, Any]]:
    """Return a tidy row per layer of the model; the groups are empty where nothing was cut."""
    groups = {layer.name: _groups_text(layer) for layer in changed}
    return [
        {
            "name": old.name,
            "kind": old.kind,
            "groups": groups.get(old.name, ""),
            "parameters_before": old.parameters,
            "parameters_after": new.parameters,
            "macs_before": old.macs,
            "macs_after": new.macs,
            "activations": old.activations,
        }
        for old, new in zip(before.layers, after.layers, strict=True)
    ]


def _groups_text(layer: RegroupedLayer) -> str:
    inputs, outputs = str(layer.in_groups), str(layer.out_groups)
    return outputs if inputs == outputs else f"{inputs} -> {outputs}"


def _totals(cost: Cost) -> dict[str, float]:
    return {"parameters": cost.parameters, "macs": cost.macs, "activations": cost.activations}


def _print_csv(rows: list[dict[str, Any]]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["layer", *list(rows[0])[1:]])
    writer.writerows(row.values() for row in rows)


def _parser(name: str) -> ArgumentParser:
    parser = strict_parser(f"experiments cost {name}")
    add_model_arguments(parser, name)
    parser.add_argument("--regroup", type=str, help="Cut the dense convolutions into these groups: 4, log:4, ~log:4, …")
    parser.add_argument("--where", type=str, help="Which of them, by name: 'layer*.conv2,stem.*'; all by default.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    parser.add_argument("--csv", action="store_true", help="Print one line of CSV per layer.")
    parser.add_argument("--measure", action="store_true", help="Measure latency and peak memory too.")
    parser.add_argument("--batch", type=int, default=32, help="Images per measured call.")
    parser.add_argument("--device", type=str, default="auto", help="Where to measure.")
    return parser


def _check(given: Namespace) -> None:
    if given.batch < 1:
        raise UsageError(f"--batch={given.batch}: must be at least 1")
    if given.where is not None and given.regroup is None:
        raise UsageError(f"--where={given.where}: says which layers to cut; give --regroup=GROUPS too, such as log:4")
    if given.csv and given.json:
        raise UsageError("--csv --json: give one of them")
    if given.csv and given.measure:
        raise UsageError("--csv --measure: a measurement is of the whole model, CSV has layers; use --json")


def _measure(models: Mapping[str, nn.Module], given: Namespace) -> dict[str, dict[str, float]]:
    """Return the latency per image and peak memory of each model, timed in turn on the same batch."""
    device = choose_device(given.device)
    size = given.input_size
    x = torch.randn(given.batch, 3, size, size, device=device).to(memory_format=torch.channels_last)

    def inference(model: nn.Module):
        model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        return torch.no_grad()(lambda: model(x))

    calls = {name: inference(model) for name, model in models.items()}
    latencies = measure_latencies(calls, device, REPEATS)
    milliseconds = 1e3 / given.batch
    return {
        name: {
            "latency_ms": latencies[name].median * milliseconds,
            "latency_ms_lower_quartile": latencies[name].lower * milliseconds,
            "latency_ms_upper_quartile": latencies[name].upper * milliseconds,
            "peak_memory_bytes": measure_peak_memory(call, device),
        }
        for name, call in calls.items()
    }
