"""Benchmark of the kernels on a GPU, with torch and Triton alone: for ``gpu.sh``, where time is short.

    python -m benchmarks.gpu cold --to=FOLDER          compiled training steps of log groups, from nothing
    python -m benchmarks.gpu ceilings --to=FOLDER      a copy and matrix products
    python -m benchmarks.gpu learn --to=FOLDER         every way of every case; extends the user's table as it goes

Each case is written to its CSV as soon as it is measured. ``--seconds`` ends a stage between two cases.

A way is replayed as a CUDA graph over several copies of its tensors, together larger than the second-level cache: what
the device takes, without Python and without what the cache still holds. Ways take turns, round by round. All are
checked against float64 first. ATen's ways are timed as training uses them (``deterministic``, the plain names, which
the table learns) and with ``cudnn.benchmark``; ``conv2d max-autotune`` is ``nn.Conv2d`` as Inductor tunes it. Of the
band kernel every blocking is timed, and learned.

``--standin`` rehearses all stages on a CPU with tiny sizes; its times mean nothing.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.plain import AUTOTUNED, autotuned, cudnn
from gconv import GroupedConv2d, forced_kernel
from gconv.explanation import floor_of, seconds_of
from gconv.kernels import CANDIDATES, OPS, find, runnable, table
from gconv.kernels.choose import APART, pixel_bits
from gconv.kernels.geometry import Geometry
from gconv.kernels.machine import device_family, this_machine
from gconv.operator import dispatch

LAYERS = ("64@32", "256@14", "128@16", "512@7", "64@56", "128@28", "256@8", "256@14/1x1", "128@28/3x3/2")
PARTITIONS = ("log:4", "8", "32", "log:3", "2", "log:5", "4")
CACHE_BYTES = 128 * 2**20  # more than the second-level cache of any GPU
COPIES = 6  # of the tensors of a way, at most
CHECKED = 8  # images on which a way is checked
ROUNDS = {"cuda": 9, "cpu": 2}
FP32_ERROR = 1e-5  # of the largest number


@dataclass(frozen=True)
class Case:
    """A layer cut in one way, computed in one dtype, channels_last."""

    layer: str
    partition: str
    dtype: torch.dtype
    batch: int
    device: torch.device

    @property
    def window(self) -> tuple[int, int, int, int]:
        """Channels, size, kernel and stride of ``128@28/3x3/2``."""
        given = self.layer.split("/")
        shape, kernel, stride = given + ["", "3x3", "1"][len(given) :]
        channels, size = shape.split("@")
        return int(channels), int(size), int(kernel.split("x")[0]), int(stride)

    def grouped(self) -> GroupedConv2d:
        """The layer."""
        channels, _, kernel, stride = self.window
        torch.manual_seed(0)
        place = {"bias": False, "device": self.device, "dtype": self.dtype}
        return GroupedConv2d(channels, channels, kernel, stride, kernel // 2, groups=self.partition, **place)  # type: ignore[arg-type]

    def plain(self, groups: int) -> nn.Conv2d:
        """``nn.Conv2d`` of the same sizes."""
        channels, _, kernel, stride = self.window
        conv = nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        return conv.to(self.device, self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def images(self, geometry: Geometry, batch: int) -> tuple[Tensor, Tensor]:
        """An input and the gradient of an output."""
        channels, size, *_ = self.window
        shapes = (batch, channels, size, size), (batch, channels, *geometry.output_size((size, size)))
        x, dy = (torch.randn(shape, device=self.device).to(self.dtype) for shape in shapes)
        return x.contiguous(memory_format=torch.channels_last), dy.contiguous(memory_format=torch.channels_last)


def main() -> None:
    """Run one stage."""
    parser = argparse.ArgumentParser(description="What a GPU does with the kernels, with torch and Triton alone.")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--to", type=Path, required=True, help="folder of the CSV files")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no case is begun")
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--standin", action="store_true", help="rehearse on a CPU, with tiny sizes")
    given = parser.parse_args()
    if not given.standin and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device here; --standin rehearses on a CPU")
    given.to.mkdir(parents=True, exist_ok=True)
    given.device = torch.device("cpu") if given.standin else torch.device("cuda", torch.cuda.current_device())
    if given.standin:
        torch.set_num_threads(1)
    given.until = time.monotonic() + given.seconds
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    STAGES[given.stage](given)


class Rows:
    """A CSV that has every row as soon as it is known."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self._path = path
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "stand-in"
        self._everywhere = {"device": name, "torch": torch.__version__, "family": device_family(device)}

    def add(self, **values: object) -> None:
        """Write a row; the first of a file names the columns."""
        row = values | self._everywhere
        fresh = not self._path.exists()
        with self._path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            if fresh:
                writer.writeheader()
            writer.writerow(row)
        print(*(f"{value:.3g}" if isinstance(value, float) else value for value in values.values()), flush=True)


def cold(given: argparse.Namespace) -> None:
    """Compiled training steps of log groups, as the suite compiles them: what is likeliest to fail goes first."""
    rows = Rows(given.to / "cold.csv", given.device)
    modes: tuple[dict[str, Any], ...] = (
        ({"backend": "aot_eager"},) if given.standin else ({"mode": "reduce-overhead"}, {"mode": "default"})
    )
    channels, size, batch = (16, 5, 2) if given.standin else (64, 32, 256)
    for groups in ("log:4", "8"):
        for mode in modes:
            torch._dynamo.reset()
            layer = GroupedConv2d(channels, channels, 3, padding=1, groups=groups)
            model = nn.Sequential(layer, nn.BatchNorm2d(channels), nn.ReLU()).to(given.device)
            x = torch.randn(batch, channels, size, size, device=given.device).to(memory_format=torch.channels_last)
            start, reason = time.perf_counter(), ""
            try:
                step = torch.compile(model, dynamic=False, **mode)
                for _ in range(4):  # built, warmed up, recorded, replayed
                    with torch.autocast(given.device.type, torch.bfloat16):
                        y = step(x)
                    y.float().square().mean().backward()
                    model.zero_grad()
            except Exception as error:
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
            name = next(iter(mode.values()))
            rows.add(groups=groups, mode=name, seconds=time.perf_counter() - start, failed=reason)


def ceilings(given: argparse.Namespace) -> None:
    """Bytes a second of a copy, multiply-accumulates a second of a product."""
    rows = Rows(given.to / "ceilings.csv", given.device)
    numbers, side = (2**12, 64) if given.standin else (2**29, 8192)
    source = torch.zeros(numbers, dtype=torch.bfloat16, device=given.device)
    target = torch.empty_like(source)
    (seconds,) = replayed({"copy": [lambda: target.copy_(source)]}, given.device).values()
    rows.add(what="copy", dtype="bfloat16", rate=4 * numbers / statistics.median(seconds), unit="bytes/s")
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        a, b = (torch.randn(side, side, device=given.device).to(dtype) for _ in range(2))
        (seconds,) = replayed({"product": [lambda a=a, b=b: a @ b]}, given.device).values()
        name = str(dtype).removeprefix("torch.")
        rows.add(what="product", dtype=name, rate=side**3 / statistics.median(seconds), unit="MACs/s")


def learn(given: argparse.Namespace) -> None:
    """Every way of every case, into ``kernels.csv`` and into the table, until time is up."""
    rows = Rows(given.to / "kernels.csv", given.device)
    layers, partitions, batch = (("8@4",), ("2", "log:3"), 1) if given.standin else (LAYERS, PARTITIONS, 256)
    for dtype in given.dtypes.split(","):
        for partition in partitions:
            for layer in layers:
                if time.monotonic() > given.until:
                    print(f"time is up before {layer} {partition} {dtype}", flush=True)
                    return
                learn_case(Case(layer, partition, getattr(torch, dtype), batch, given.device), rows)
    print(f"table: {table.own_path(this_machine(given.device))}")


def learn_case(case: Case, rows: Rows) -> None:
    """Time one case; extend the table by each op, then by the step, which depends on what was chosen."""
    layer = case.grouped()
    x, _ = case.images(layer.geometry, 1)
    bits = pixel_bits(case.batch, *x.shape[2:])
    machine = this_machine(case.device)
    for op in (*OPS, "step"):
        kind = table.Kind.of(op, layer.geometry, case.dtype, True, bits)
        try:
            times = dict(time_op(case, op, layer))
        except Exception as error:  # the other cases go on
            failed = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            rows.add(**_columns(case, op), way="none", median=0.0, lower=0.0, upper=0.0, floor=0.0, failed=failed)
            continue
        amount = 3 if op == "step" else 1
        macs, numbers = floor_of(layer.geometry, (case.batch, *x.shape[1:]))
        floor = seconds_of(macs, numbers * case.dtype.itemsize, case.dtype, case.device)
        for way, seconds in times.items():
            lower, median, upper = statistics.quantiles(seconds, n=4, method="inclusive")
            rows.add(
                **_columns(case, op),
                **{"way": way, "median": median, "lower": lower, "upper": upper},
                **{"floor": "" if floor is None else amount * floor, "failed": ""},
            )
        known = {name: statistics.median(times[way]) for way, name in _learned(times, op)}
        table.extend(machine, [(kind, known)])
        dispatch.forget()


def _columns(case: Case, op: str) -> dict[str, object]:
    dtype = str(case.dtype).removeprefix("torch.")
    return {"layer": case.layer, "partition": case.partition, "batch": case.batch, "dtype": dtype, "op": op}


def _learned(times: dict[str, list[float]], op: str) -> Iterator[tuple[str, str]]:
    """Ways that the table knows, and its names for them: kernels as training uses them, and a step of several."""
    for way in times:
        if way in CANDIDATES or way.startswith("band "):
            yield way, way
        elif way == "ours" and op == "step":
            yield way, APART


def time_op(case: Case, op: str, layer: GroupedConv2d) -> Iterator[tuple[str, list[float]]]:
    """Seconds of every way of one op that computes what float64 does."""
    geometry = layer.geometry
    x, dy = case.images(geometry, min(case.batch, CHECKED))
    reference = _ops(find("loop"), op, geometry)(x.double(), dy.double(), layer.weight.detach().double())
    ways = dict(ways_of(case, op, layer))
    tensors = sum(t.numel() * t.itemsize for t in case.images(geometry, 1)) * case.batch
    copies = 2 if case.device.type == "cpu" else max(2, min(COPIES, CACHE_BYTES // tensors + 1))
    sets = [case.images(geometry, case.batch) for _ in range(copies)]
    calls: dict[str, list[Callable[[], object]]] = {}
    for name, (way, benchmark) in ways.items():
        try:
            with cudnn("benchmark" if benchmark else "deterministic"):
                result = way(x, dy, layer.weight.detach())
                if not name.startswith("dense"):
                    _check(name, result, reference, case.dtype)
                way(*sets[0], layer.weight.detach())  # what is tuned is tuned for this size, before it is recorded
        except Exception as error:
            print(f"{case.layer} {case.partition} {op}: {name} is not timed: {' '.join(str(error).split())[:300]}")
            continue
        calls[name] = [partial(way, *tensors, layer.weight.detach()) for tensors in sets]
    benchmark = {name for name in calls if ways[name][1]}
    for setting in (False, True):  # the two settings of cuDNN one after the other
        with cudnn("benchmark" if setting else "deterministic"):
            part = {name: call for name, call in calls.items() if (name in benchmark) == setting}
            yield from replayed(part, case.device).items()


Way = Callable[[Tensor, Tensor, Tensor], Tensor]


def ways_of(case: Case, op: str, layer: GroupedConv2d) -> Iterator[tuple[str, tuple[Way, bool]]]:
    """Name, call of (x, dy, weight), and whether cuDNN searches for what is fastest."""
    geometry = layer.geometry
    names = runnable(geometry, case.dtype, case.device)
    dense = case.plain(1)
    for benchmark in (False, True):
        tail = " benchmark" if benchmark else ""
        for name in names:
            if name == "band" and (benchmark or op != "step"):
                continue
            yield name + tail, (_step(layer, name) if op == "step" else _ops(find(name), op, geometry), benchmark)
        if op == "step":
            yield "dense" + tail, (_step(dense, None, dense.weight), benchmark)
        else:
            wide = GroupedConv2d(*_arguments(case), device="meta").geometry
            way = _ops(find("native"), op, wide)
            yield "dense" + tail, (lambda x, dy, _, way=way: way(x, dy, dense.weight.detach()), benchmark)
    yield "ours", (_step(layer, None) if op == "step" else _ops(dispatch, op, geometry), False)
    if "band" in names and op != "step":
        blockings = find("band").configs(geometry, case.dtype, case.device)
        for blocking in blockings if case.device.type == "cuda" else blockings[1:3]:
            yield f"band {blocking}", (_ops(find("band"), op, geometry, blocking=blocking), False)
    if geometry.is_uniform and op == "conv2d":
        groups, stride, padding = geometry.groups, geometry.stride, geometry.padding
        tuned = autotuned(lambda x, weight: F.conv2d(x, weight, None, stride, padding, 1, groups), case.device)
        yield AUTOTUNED, (lambda x, dy, weight: tuned(x, weight), False)


def _arguments(case: Case) -> tuple[int, int, int, int, int]:
    channels, _, kernel, stride = case.window
    return channels, channels, kernel, stride, kernel // 2


def _ops(ops: Any, op: str, geometry: Geometry, **more: Any) -> Way:
    if op == "conv2d":
        return lambda x, dy, weight: ops.conv2d(x, weight, None, geometry, **more)
    if op == "input_gradient":
        return lambda x, dy, weight: ops.input_gradient(dy, weight, geometry, tuple(x.shape[2:]), **more)
    if op == "weight_gradient":
        return lambda x, dy, weight: ops.weight_gradient(dy, x, geometry, **more)

    def step(x: Tensor, dy: Tensor, weight: Tensor) -> Tensor:
        """Both gradients; that of the weight is compared."""
        ops.input_gradient(dy, weight, geometry, tuple(x.shape[2:]))
        return ops.weight_gradient(dy, x, geometry)

    return step


def _step(module: nn.Module, kernel: str | None, weight: Tensor | None = None) -> Way:
    """Forward and backward pass of a module; the gradient of its weight."""

    def step(x: Tensor, dy: Tensor, _: Tensor) -> Tensor:
        image, own = x.detach().requires_grad_(), module.weight if weight is None else weight
        if kernel is None:
            return torch.autograd.grad(module(image), [image, own], dy)[1]  # type: ignore[list-item]
        with forced_kernel(kernel):
            return torch.autograd.grad(module(image), [image, own], dy)[1]  # type: ignore[list-item]

    return step


def _check(name: str, result: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    error = ((result.double() - exact).abs().max() / exact.abs().max()).item()
    allowed = FP32_ERROR if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    if not error <= allowed:
        raise ValueError(f"it is off by {error:.1e} of the largest number, more than {allowed:.1e}")


def replayed(ways: dict[str, list[Callable[[], object]]], device: torch.device) -> dict[str, list[float]]:
    """Seconds of one call of each way, round by round: recorded as a graph on a GPU, called on a stand-in."""
    runs: dict[str, Callable[[], object]] = {}
    for name, calls in ways.items():
        runs[name] = partial(_one_after_another, calls) if device.type == "cpu" else _recorded(calls).replay
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS[device.type] + 1):
        for name, run in runs.items():
            taken = _timed(run, device) / len(ways[name])
            if turn:  # the first warms up
                seconds[name].append(taken)
    return seconds


def _one_after_another(calls: list[Callable[[], object]]) -> None:
    for call in calls:
        call()


def _recorded(calls: list[Callable[[], object]]) -> torch.cuda.CUDAGraph:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        _one_after_another(calls)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _one_after_another(calls)
    return graph


def _timed(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cpu":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


STAGES = {"cold": cold, "ceilings": ceilings, "learn": learn}

if __name__ == "__main__":
    main()
