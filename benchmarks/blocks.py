"""Convolution, batch normalisation and ReLU: one module after the other, and as a Block, in eager mode and compiled.

``training`` is a forward and a backward pass, ``evaluation`` a forward pass in which nothing is differentiated. Every
variant is checked before it is timed: outputs, gradients and running statistics against the same modules in float64, to
at most twice the error of the modules one after the other in the same dtype. All variants run in turn, round by round,
so that slow drifts of the machine affect all of them equally. On a GPU every setting of cuDNN is timed, and equal
groups as ``nn.Conv2d`` under ``mode="max-autotune"`` (``benchmarks.plain``).

    python -m benchmarks.blocks [--layers=64@32,128@16] [--partitions=1,4,log:4] [--dtypes=float32]
        [--modes=training,evaluation] [--cudnn=deterministic,free,benchmark] [--batch=64] [--repeats=15] [--csv=FILE]
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks.arguments import dtypes, whole
from benchmarks.kernels import parse_layer
from benchmarks.plain import AUTOTUNED, autotuned, cudnn, cudnn_names
from experiments.store.runs import provenance
from experiments.terminal import replace_unencodable
from experiments.training.run_context import choose_device, device_name
from gconv import Block, GroupedConv2d
from gconv.cost import Latency, measure_latencies

LAYERS = {"cpu": "64@32,128@16,256@8", "cuda": "64@56,128@28,256@14,512@7"}
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}
BATCH = {"cpu": 64, "cuda": 256}
WAYS = ("modules", "block", "modules compiled", "block compiled", AUTOTUNED)
MODES = ("training", "evaluation")
REFERENCE = "modules"  # denominator of the ratios
MAX_ERROR_ULP = 8  # units in the last place of the largest number
KINK_ULP = 64  # units in the last place around the kink of the ReLU

Result = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A block cut in one way, in one mode, under one setting of cuDNN."""

    layer: str
    partition: str
    dtype: torch.dtype
    mode: str
    batch: int
    device: torch.device
    cudnn: str = "free"

    @property
    def ways(self) -> tuple[str, ...]:
        """Ways to compute it: ``nn.Conv2d`` takes equal groups, and is tuned for a GPU."""
        channels = parse_layer(self.layer)[0]
        equal = GroupedConv2d(channels, channels, 1, groups=self.partition, device="meta").geometry.is_uniform
        return WAYS if equal and self.device.type == "cuda" else WAYS[:-1]

    def build(self) -> tuple[nn.Sequential, Tensor, Tensor]:
        """Return the modules, with running statistics in the norm, an input, and the gradient of an output."""
        channels, size, kernel, stride = parse_layer(self.layer)
        torch.manual_seed(0)
        conv = GroupedConv2d(channels, channels, kernel, stride, kernel // 2, groups=self.partition, bias=False)
        norm = nn.BatchNorm2d(channels)
        for values in (norm.weight, norm.running_var):
            nn.init.uniform_(values, 0.5, 1.5)  # type: ignore[arg-type]
        for values in (norm.bias, norm.running_mean):
            nn.init.normal_(values, std=0.5)  # type: ignore[arg-type]
        model = nn.Sequential(conv, norm, nn.ReLU(inplace=True)).train(self.mode == "training")
        x = torch.randn(self.batch, channels, size, size)
        dy = torch.randn(self.batch, channels, *conv.geometry.output_size((size, size)))
        model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        x, dy = (t.to(self.device, self.dtype).contiguous(memory_format=torch.channels_last) for t in (x, dy))
        return model, x, dy


def main() -> None:
    """Run the benchmark."""
    device = choose_device("auto")
    kind = device.type if device.type in LAYERS else "cpu"
    parser = argparse.ArgumentParser(description="Convolution, batch normalisation and ReLU, one by one and fused.")
    parser.add_argument("--layers", default=LAYERS[kind])
    parser.add_argument("--partitions", default="1,4,log:4")
    parser.add_argument("--dtypes", type=dtypes, default=DTYPES[kind])
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--cudnn", help="settings of cuDNN: deterministic, free, benchmark; on a GPU all of them")
    parser.add_argument("--batch", type=whole(1), default=BATCH[kind])
    parser.add_argument("--repeats", type=whole(2), default=15, help="timed rounds")
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    try:
        cases = list(cases_of(given, device))
    except (ValueError, AttributeError) as error:
        parser.error(str(error))
    rows: list[dict[str, object]] = []
    for case in cases:
        rows += measure(case, given.repeats)
        if given.csv:  # after every case, so that an interrupted run keeps its results
            given.csv.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(rows).assign(**provenance(device_name(device))).to_csv(given.csv, index=False)


def cases_of(given: argparse.Namespace, device: torch.device) -> Iterator[Case]:
    """Return all requested cases; raise for a wrong one before anything is timed."""
    for dtype in given.dtypes.split(","):
        for layer in given.layers.split(","):
            channels = parse_layer(layer)[0]
            for partition in given.partitions.split(","):
                GroupedConv2d(channels, channels, 1, groups=partition, device="meta")
                for mode in given.modes.split(","):
                    if mode not in MODES:
                        raise ValueError(f"--modes={mode}: write {' or '.join(MODES)}")
                    for setting in cudnn_names(device, given.cudnn):
                        yield Case(layer, partition, getattr(torch, dtype), mode, given.batch, device, setting)


def measure(case: Case, repeats: int) -> list[dict[str, object]]:
    """Check every variant, time those that pass, in turn; print and return one row for each."""
    torch._dynamo.reset()
    with cudnn(case.cudnn):
        times = dict(time_ways(case, repeats))
    rows = []
    for way, (time, error) in times.items():
        ratio = time.median / times[REFERENCE][0].median if REFERENCE in times else float("nan")
        rows.append(
            {
                "layer": case.layer,
                "partition": case.partition,
                "batch": case.batch,
                "dtype": str(case.dtype).removeprefix("torch."),
                "mode": case.mode,
                "cudnn": case.cudnn,
                "way": way,
                "ratio": ratio,
                **{name: 1e3 * getattr(time, field) for name, field in MILLISECONDS.items()},
                "error": error,
                "threads": torch.get_num_threads(),
                "load": os.getloadavg()[0],
            }
        )
        print(
            f"{case.layer:<8}{case.partition:<7}{rows[-1]['dtype']:<10}{case.mode:<12}{case.cudnn:<14}{way:<20}"
            f"{1e3 * time.median:>8.2f} ms [{1e3 * time.lower:.2f}, {1e3 * time.upper:.2f}]{ratio:>7.2f} × {REFERENCE}",
            flush=True,
        )
    return rows


MILLISECONDS = {"ms": "median", "lower": "lower", "upper": "upper"}


def time_ways(case: Case, repeats: int) -> Iterator[tuple[str, tuple[Latency, float]]]:
    """Return latency and error of each variant with correct results; the others are named on stderr and not timed."""
    model, x, dy = case.build()
    dy = dy * _decided(model, x)
    exact = _results(copy.deepcopy(model).double(), case, x.double(), dy.double())
    errors, calls = {}, {}
    for way in case.ways:
        own = _model(model, way)
        errors[way] = _errors(_results(own, case, x, dy), exact)
        calls[way] = partial(_call, own, case, x, dy)
    for way, errors_of_way in errors.items():
        for name, error in errors_of_way.items():
            allowed = max(2 * errors[REFERENCE][name], MAX_ERROR_ULP * torch.finfo(case.dtype).eps)
            if not error <= allowed:
                print(
                    f"{case.layer} {case.partition} {case.dtype} {case.mode}: not timed, since {way} is off by "
                    f"{error:.1e} in {name}, more than {allowed:.1e}",
                    file=sys.stderr,
                )
                calls.pop(way, None)
    for way, latency in measure_latencies(calls, case.device, repeats).items():
        yield way, (latency, max(errors[way].values()))


def _model(model: nn.Sequential, way: str) -> nn.Module:
    own: nn.Module = copy.deepcopy(model)
    if way == AUTOTUNED:
        own = nn.Sequential(_plain(model[0]), *list(own.children())[1:]).train(model.training)
        return autotuned(own, model[0].weight.device)  # type: ignore[return-value, arg-type]
    if way.startswith("block"):
        own = Block(*own.children()).train(model.training)
    return torch.compile(own) if way.endswith("compiled") else own  # type: ignore[return-value]


def _plain(conv: nn.Module) -> nn.Conv2d:
    """``nn.Conv2d`` with the weight of a layer of equal groups."""
    assert isinstance(conv, GroupedConv2d) and conv.geometry.is_uniform
    window = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups
    plain = nn.Conv2d(conv.in_channels, conv.out_channels, *window, bias=False, device="meta")  # type: ignore[arg-type]
    plain.weight = nn.Parameter(conv.weight.detach().clone())
    return plain


def _call(model: nn.Module, case: Case, x: Tensor, dy: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
    """Return the output, and in training the gradients of the input and of all parameters."""
    cast = x.dtype not in (torch.float32, torch.float64)
    with torch.autocast(x.device.type, x.dtype, enabled=cast):
        if case.mode == "evaluation":
            with torch.no_grad():
                return model(x), ()
        x = x.detach().requires_grad_()
        y = model(x)
    return y, torch.autograd.grad(y, [x, *model.parameters()], dy.to(y.dtype))


def _decided(model: nn.Sequential, x: Tensor) -> Tensor:
    """Return a mask of the outputs where rounding does not decide if the ReLU passes a gradient; others get none."""
    with torch.no_grad():
        before = copy.deepcopy(model[:2]).double()(x.double())
    return before.abs() > KINK_ULP * torch.finfo(x.dtype).eps * before.abs().max()


def _results(model: nn.Module, case: Case, x: Tensor, dy: Tensor) -> Result:
    y, gradients = _call(model, case, x, dy)
    names = ("gradient of x", "gradient of weight", "gradient of γ", "gradient of β")
    running = {n.rpartition(".")[2]: b.detach().clone() for n, b in model.named_buffers() if b.is_floating_point()}
    return {"y": y.detach(), **dict(zip(names, gradients, strict=False)), **running}


def _errors(results: Result, exact: Result) -> dict[str, float]:
    """Return the largest differences, relative to the largest numbers."""
    return {
        name: ((results[name].double() - true).abs().max() / true.abs().max()).item() for name, true in exact.items()
    }


if __name__ == "__main__":
    replace_unencodable()
    main()
