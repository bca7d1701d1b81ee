"""What one model costs, per layer and in sum, as a table or as JSON."""

from __future__ import annotations

import json
from argparse import ArgumentError
from dataclasses import asdict
from difflib import get_close_matches

import torch
from jsonargparse import ArgumentParser
from torch import nn

from experiments.errors import UsageError
from experiments.models import MODELS, build_model, model_builder
from experiments.study import parser_error, strict_parser
from experiments.train import choose_device
from experiments.vision import import_torchvision
from gconv.cost import Cost, count_cost, measure_latencies, measure_peak_memory

TORCHVISION = "torchvision:"
REPEATS = 21


def print_cost(name: str, flags: list[str]) -> None:
    """Print the cost of ``alexnet``, or any other model of the suite, or ``torchvision:resnet50``.

    Raises:
        UsageError: no such model, unknown flags, arguments no network can have, an input that does not fit.
    """
    parser = _parser(name)
    try:
        given = parser.parse_args(flags)
    except ArgumentError as error:
        raise UsageError(f"cost {name}: {parser_error(error, parser)}") from None
    if given.batch < 1 or given.input_size < 1:
        raise UsageError(f"--batch={given.batch}, --input_size={given.input_size}: must be at least 1")
    arguments = vars(given.model) if "model" in given else {}
    model = _build(name, arguments, given.input_size)
    shape = (3, given.input_size, given.input_size)
    try:
        counted = count_cost(model, shape)
    except ValueError as error:
        raise UsageError(f"cost {name}: {error}") from None
    measured = _measure(name, arguments, given.input_size, given.batch, given.device) if given.measure else {}
    if given.json:
        totals = {"parameters": counted.parameters, "macs": counted.macs, "activations": counted.activations}
        print(json.dumps({**totals, **measured, "layers": [asdict(layer) for layer in counted.layers]}, indent=1))
    else:
        print(cost_table(counted, f"{name}, one image of {given.input_size} × {given.input_size} pixels"))
        for key, value in measured.items():
            print(f"{key}: {value:.4g}")


def cost_table(cost: Cost, title: str) -> str:
    """Per-layer costs and their sum as aligned text."""
    width = max(len(layer.name) for layer in cost.layers)
    lines = [title, f"{'layer':<{width}}  {'kind':<18}{'parameters':>14}{'MACs':>18}{'activations':>14}"]
    for layer in cost.layers:
        lines.append(
            f"{layer.name:<{width}}  {layer.kind:<18}{layer.parameters:>14,}{layer.macs:>18,}{layer.activations:>14,}"
        )
    lines.append(f"{'total':<{width}}  {'':<18}{cost.parameters:>14,}{cost.macs:>18,}{cost.activations:>14,}")
    return "\n".join(lines)


def _parser(name: str) -> ArgumentParser:
    parser = strict_parser(f"experiments cost {name}")
    default_size = 224
    if not name.startswith(TORCHVISION):
        builder = model_builder(name) if name in MODELS else _unknown(name)
        parser.add_function_arguments(builder, "model", skip={"input_size"})
        default_size = MODELS[name]
    parser.add_argument("--input_size", type=int, default=default_size, help="Height and width of the image in pixels.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    parser.add_argument("--measure", action="store_true", help="Measure latency and peak memory too.")
    parser.add_argument("--batch", type=int, default=32, help="Images per measured call.")
    parser.add_argument("--device", type=str, default="auto", help="Where to measure.")
    return parser


def _unknown(name: str):
    try:
        return model_builder(name)
    except UsageError as error:
        raise UsageError(f"{error}, and torchvision:NAME") from None


def _build(name: str, arguments: dict, input_size: int) -> nn.Module:
    if not name.startswith(TORCHVISION):
        return build_model(name, input_size, **arguments)
    models, model = import_torchvision().models, name.removeprefix(TORCHVISION)
    known = models.list_models(module=models)
    if model not in known:
        near = get_close_matches(model, known, n=1)
        hint = f"; did you mean {TORCHVISION}{near[0]}?" if near else f"; there are: {', '.join(known)}"
        raise UsageError(f"MODEL={name}: torchvision has no such classifier{hint}")
    return models.get_model(model)


def _measure(name: str, arguments: dict, input_size: int, batch: int, device_name: str) -> dict[str, float]:
    device = choose_device(device_name)
    model = _build(name, arguments, input_size).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(batch, 3, input_size, input_size, device=device).to(memory_format=torch.channels_last)

    def infer() -> None:
        with torch.no_grad():
            model.eval()(x)

    latency = measure_latencies({name: infer}, device, REPEATS)[name]
    milliseconds = 1e3 / batch
    return {
        "latency_ms": latency.median * milliseconds,
        "latency_ms_lower_quartile": latency.lower * milliseconds,
        "latency_ms_upper_quartile": latency.upper * milliseconds,
        "peak_memory_bytes": measure_peak_memory(infer, device),
    }
