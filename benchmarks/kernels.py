"""Time of every kernel on grouped convolutions, side by side: forward pass, both gradients, and a whole step.

What is timed has just been checked: its error against float64 is at most twice that of ATen's own way (``native``, or
``loop`` for uneven groups) in the same dtype. Kernels run in turn, round by round, so that a drifting machine treats
them alike. ``dense`` is the layer without groups, ``ours`` what the operator chooses.

    python -m benchmarks.kernels [--layers=64@32,128@16] [--partitions=2,log:4] [--dtypes=float32,bfloat16]
        [--layouts=channels_last] [--batch=64] [--repeats=15] [--to=FOLDER]       one long CSV, and the figure

A layer is written ``64@32`` (channels at a size), ``256@14/1x1`` or ``128@28/3x3/2`` (with a stride).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from analysis.figures import speed
from benchmarks.arguments import dtypes, whole
from experiments.store.runs import provenance
from experiments.terminal import replace_unencodable
from experiments.training.run_context import choose_device, device_name
from gconv import GroupedConv2d, forced_kernel
from gconv.cost import Latency, measure_latencies
from gconv.explanation import floor_of, seconds_of, share_of_dense
from gconv.kernels import OPS, find, runnable
from gconv.kernels.geometry import Geometry
from gconv.kernels.machine import device_family
from gconv.operator import dispatch

LAYERS = {
    "cpu": "64@32,128@16,256@8",
    "cuda": "64@56,128@28,256@14,512@7,64@32,128@16,256@8,256@14/1x1,512@7/1x1,128@28/3x3/2",
}
PARTITIONS = {"cpu": "2,8,log:3,log:4,log:5", "cuda": "2,4,8,32,log:3,log:4,log:5"}
BATCH = {"cpu": 64, "cuda": 256}
SHORT = 2e-3  # seconds: what takes less is repeated within one measurement
FP32_ERROR = 1e-5  # relative to the largest number of the result, at most
FP32_ROUNDING = 1e-6  # what sums in another order may differ by

Result = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """One layer with one partition, in one dtype and memory format."""

    layer: str
    partition: str
    dtype: torch.dtype
    channels_last: bool
    batch: int
    device: torch.device

    def build(self) -> tuple[GroupedConv2d, nn.Conv2d, Tensor, Tensor]:
        """Return the layer, the dense one, an input and the gradient of an output."""
        channels, size, kernel, stride = parse_layer(self.layer)
        torch.manual_seed(0)
        arguments = (channels, channels, kernel, stride, kernel // 2)
        place = {"bias": False, "device": self.device, "dtype": self.dtype}
        grouped, dense = GroupedConv2d(*arguments, groups=self.partition, **place), nn.Conv2d(*arguments, **place)  # type: ignore[arg-type]
        layout = torch.channels_last if self.channels_last else torch.contiguous_format

        def images(*shape: int) -> Tensor:
            return torch.randn(*shape, device=self.device).to(self.dtype).contiguous(memory_format=layout)

        outputs = grouped.geometry.output_size((size, size))
        dense.weight.data = dense.weight.data.contiguous(memory_format=layout)
        return grouped, dense, images(self.batch, channels, size, size), images(self.batch, channels, *outputs)


def main() -> None:
    """Run the benchmark."""
    device = choose_device("auto")
    kind = device.type if device.type in LAYERS else "cpu"
    parser = argparse.ArgumentParser(description="Time of every kernel on grouped convolutions, side by side.")
    parser.add_argument("--layers", default=LAYERS[kind])
    parser.add_argument("--partitions", default=PARTITIONS[kind])
    parser.add_argument("--dtypes", type=dtypes, default="bfloat16,float32")
    parser.add_argument("--layouts", default="channels_last")
    parser.add_argument("--batch", type=whole(1), default=BATCH[kind])
    parser.add_argument("--repeats", type=whole(2), default=15, help="timed rounds")
    parser.add_argument("--to", type=Path, default=Path("runs/kernels"), help="folder of the CSV and the figure")
    given = parser.parse_args()
    try:
        cases = list(cases_of(given, device))
    except (ValueError, AttributeError) as error:
        parser.error(str(error))
    rows = []
    for case in cases:
        rows += measure(case, given.repeats)
        print(summary(rows[-1]["case"], rows), flush=True)  # type: ignore[arg-type]
    long = pd.DataFrame(rows).drop(columns="case").assign(**provenance(device_name(device)))
    given.to.mkdir(parents=True, exist_ok=True)
    long.to_csv(given.to / "kernels.csv", index=False)
    print(*[given.to / "kernels.csv", *speed.draw(long, given.to)], sep="\n")


def cases_of(given: argparse.Namespace, device: torch.device) -> Iterator[Case]:
    """Return all requested cases; raise for a wrong one before anything is timed."""
    for dtype in given.dtypes.split(","):
        for layout in given.layouts.split(","):
            if layout not in ("channels_last", "contiguous"):
                raise ValueError(f"--layouts={layout}: write channels_last or contiguous")
            for layer in given.layers.split(","):
                for partition in given.partitions.split(","):
                    GroupedConv2d(parse_layer(layer)[0], parse_layer(layer)[0], 1, groups=partition, device="meta")
                    yield Case(layer, partition, getattr(torch, dtype), layout == "channels_last", given.batch, device)


def parse_layer(text: str) -> tuple[int, int, int, int]:
    """``128@28/3x3/2`` to channels, size, kernel and stride.

    Raises:
        ValueError: the text has another form.
    """
    try:
        given = text.split("/")
        shape, kernel, stride = given + ["@", "3x3", "1"][len(given) :]
        channels, size = shape.split("@")
        return int(channels), int(size), int(kernel.split("x")[0]), int(stride)
    except ValueError:
        raise ValueError(f"--layers={text}: write 64@32, 64@32/1x1 or 64@32/3x3/2") from None


def calls_of(case: Case, op: str, with_ours: bool) -> tuple[dict[str, Callable[[], Result]], Callable[[], Result]]:
    """Return the functions that compute one op of a case, by name, and the result in float64."""
    layer, dense, x, dy = case.build()
    geometry, wide = layer.geometry, GroupedConv2d(*_arguments(case), device="meta").geometry
    weight, wide_weight = layer.weight.detach(), dense.weight.detach()
    names = runnable(geometry, case.dtype, case.device)

    def raw(ops: Any, op: str, x: Tensor, dy: Tensor, weight: Tensor, geometry: Geometry) -> Result:
        if op == "conv2d":
            return (ops.conv2d(x, weight, None, geometry),)
        if op == "input_gradient":
            return (ops.input_gradient(dy, weight, geometry, tuple(x.shape[2:])),)
        return (ops.weight_gradient(dy, x, geometry),)

    def exactly(op: str) -> Result:
        return raw(find("loop"), op, x.double(), dy.double(), weight.double(), geometry)

    if op != "step":
        calls = {name: partial(raw, find(name), op, x, dy, weight, geometry) for name in names}
        calls["dense"] = partial(raw, find("native"), op, x, dy, wide_weight, wide)
        if with_ours:
            calls["ours"] = partial(raw, dispatch, op, x, dy, weight, geometry)
        return calls, partial(exactly, op)
    image = x.clone(memory_format=torch.preserve_format).requires_grad_()

    def step(module: nn.Module, weight: Tensor, kernel: str | None) -> Result:
        with nullcontext() if kernel is None else forced_kernel(kernel):
            return torch.autograd.grad(module(image), [image, weight], dy)

    calls = {name: partial(step, layer, layer.weight, name) for name in names}
    calls |= {"dense": partial(step, dense, dense.weight, None), "ours": partial(step, layer, layer.weight, None)}
    return calls, lambda: (*exactly("input_gradient"), *exactly("weight_gradient"))


def _arguments(case: Case) -> tuple[int, int, int, int, int]:
    channels, _, kernel, stride = parse_layer(case.layer)
    return channels, channels, kernel, stride, kernel // 2


def time_op(case: Case, op: str, repeats: int, with_ours: bool = True) -> Iterator[tuple[str, Latency, float, float]]:
    """Check every kernel of one op, then time those that pass, in turn.

    Yields:
        Name, seconds, error of its result and error of ATen's own: largest difference from float64 over the largest
        number. A kernel that fails is named on stderr and not timed.
    """
    calls, exactly = calls_of(case, op, with_ours)
    exact = exactly()
    errors = {name: _error(call(), exact) for name, call in calls.items() if name != "dense"}
    yardstick = errors["native" if "native" in errors else "loop"]
    allowed = allowed_error(yardstick, case.dtype)
    for name, error in errors.items():
        if not error <= allowed:
            print(
                f"{case.layer} {case.partition} {case.dtype} {op}: not timed, since "
                f"{name} is off by {error:.1e}, more than {allowed:.1e}",
                file=sys.stderr,
            )
            del calls[name]
    inner = {name: _times_within(call, case.device) for name, call in calls.items()}
    timed = {name: _again(call, inner[name]) for name, call in calls.items()}
    for name, latency in measure_latencies(timed, case.device, repeats).items():
        each = Latency(*(t / inner[name] for t in (latency.median, latency.lower, latency.upper)))
        yield name, each, errors.get(name, 0.0), yardstick


def allowed_error(aten_error: float, dtype: torch.dtype) -> float:
    """Twice ATen's own, or half a unit in the last place of the largest number; in fp32 never beyond 1e-5."""
    if dtype == torch.float32:
        return min(max(2 * aten_error, FP32_ROUNDING), FP32_ERROR)
    return max(2 * aten_error, torch.finfo(dtype).eps / 2)


def _error(results: Result, exact: Result) -> float:
    differences = [(r.double() - e).abs().max() / e.abs().max() for r, e in zip(results, exact, strict=True)]
    return max(d.item() for d in differences)


def _times_within(call: Callable[[], Result], device: torch.device) -> int:
    """Return the number of calls within one measurement, so that clock and launch are negligible."""
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return max(1, round(SHORT / (time.perf_counter() - start)))


def _again(call: Callable[[], Result], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            call()

    return run


def measure(case: Case, repeats: int) -> list[dict[str, object]]:
    """Return the rows of the long table for one case."""
    layer, _, x, _ = case.build()
    geometry = layer.geometry
    macs, numbers = floor_of(geometry, tuple(x.shape))
    rows = []
    for op in (*OPS, "step"):
        amount = 3 if op == "step" else 1
        floor = seconds_of(macs, numbers * case.dtype.itemsize, case.dtype, case.device)
        for name, latency, error, yardstick in time_op(case, op, repeats):
            rows.append(
                {
                    "layer": case.layer,
                    "partition": case.partition,
                    "batch": case.batch,
                    "dtype": str(case.dtype).removeprefix("torch."),
                    "layout": "channels_last" if case.channels_last else "contiguous",
                    "op": op,
                    "kernel": name,
                    "median": latency.median,
                    "lower": latency.lower,
                    "upper": latency.upper,
                    "error": error,
                    "aten_error": yardstick,
                    "macs": amount * macs,
                    "ideal": share_of_dense(geometry),
                    "floor": None if floor is None else amount * floor,
                    "family": device_family(case.device),
                    "threads": torch.get_num_threads(),
                    "case": case,
                }
            )
    return rows


def summary(case: Case, rows: list[dict[str, object]]) -> str:
    """One line: the whole step of every kernel over the dense one."""
    step = {r["kernel"]: float(r["median"]) for r in rows if r["case"] == case and r["op"] == "step"}  # type: ignore[arg-type]
    ratios = "  ".join(f"{name} {seconds / step['dense']:.2f}" for name, seconds in step.items() if name != "dense")
    dtype = str(case.dtype).removeprefix("torch.")
    return f"{case.layer:<10} {case.partition:<6} {dtype:<9} dense {1e3 * step['dense']:7.2f} ms; over dense: {ratios}"


if __name__ == "__main__":
    replace_unencodable()
    main()
