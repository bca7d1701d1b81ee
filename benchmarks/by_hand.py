"""The operator against the best that a user would write by hand, and against the machine's own ceiling.

By hand: ``nn.Conv2d`` with groups where they are equal, one ``nn.Conv2d`` per group and a concatenation, all groups
packed into one grouped convolution, and a dense convolution with zeros. The ceiling is the time in which the dense
layer does as many multiply-accumulates. Weights and images are channels_last. ``forward`` is inference, ``step`` the
forward pass and both gradients.

The fastest way by hand is chosen in rounds of its own: chosen in the rounds that it is judged by, it would be too fast
by chance. A second copy of it (``again``) is timed beside it. Its ratio to the first is 1 but for chance and for where
memory lies, so it shows how many cases fall below the goal without being slower.

    python -m benchmarks.by_hand [--layers=64@32,…] [--partitions=log:3,…] [--batches=1,8,64] [--dtypes=float32,…]
        [--ops=forward,step] [--choices=shipped,rule,tuned] [--repeats=6] [--cpu-time] [--to=FILE]

``shipped`` chooses as the operator does after installation, ``rule`` without any table, ``tuned`` after ``gconv.tune``,
whose times are forgotten again. A partition ``depthwise`` has a group per channel. ``--cpu-time`` counts the seconds of
the thread in place of those of the clock, for one thread while others work. Each case is added to the CSV as soon as
it is measured; what the file holds already is not measured again.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from benchmarks.arguments import dtypes, whole, whole_numbers
from benchmarks.kernels import SHORT, parse_layer
from experiments.store.runs import provenance
from experiments.terminal import replace_unencodable
from experiments.training.run_context import choose_device, device_name
from gconv import GroupedConv2d, forced_kernel, tune
from gconv.explanation import share_of_dense
from gconv.kernels import table
from gconv.kernels.choose import chosen_by
from gconv.kernels.machine import computes, synchronize, this_machine
from gconv.kernels.race import order_of_round
from gconv.tuning import Use

LAYERS = "64@32,96@28,128@16,256@8,512@7"
PARTITIONS = "log:3,log:4,log:5,3:2:1:1:1,2,4,8,16,32,depthwise"
HOPELESS = 1.5  # times the fastest by hand, after one call: never timed again
ROUNDS_TO_CHOOSE = 3  # of the ways by hand, before the rounds that count
JUDGED = ("best", "again", "ours", "dense")
HAND = ("native", "loop", "packed", "masked")
GOALS = {"of_best_by_hand": 0.97, "again_of_best": 0.97, "of_ceiling": 0.8}


@dataclass(frozen=True)
class Case:
    """One layer, cut in one way, at one batch size and dtype; one op, chosen for in one way."""

    layer: str
    partition: str
    batch: int
    dtype: str
    op: str
    choice: str


class Loop(nn.Module):
    """Unequal groups as a user writes them: split, one convolution per group, concatenate."""

    def __init__(self, layer: GroupedConv2d) -> None:
        super().__init__()
        self._sizes = list(layer.geometry.in_groups.sizes)
        cuts = zip(layer.geometry.in_groups.sizes, layer.geometry.out_groups.sizes, strict=True)
        window = layer.kernel_size, layer.stride, layer.padding
        self.convolutions = nn.ModuleList(nn.Conv2d(i, o, *window, bias=False) for i, o in cuts)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, O, H', W')."""
        parts = zip(self.convolutions, x.split(self._sizes, 1), strict=True)
        return torch.cat([convolution(part) for convolution, part in parts], 1)


def main() -> None:
    """Run the benchmark."""
    device = choose_device("auto")
    parser = argparse.ArgumentParser(description="The operator against the best by hand, and against the ceiling.")
    parser.add_argument("--layers", default=LAYERS)
    parser.add_argument("--partitions", default=PARTITIONS)
    parser.add_argument("--batches", type=whole_numbers, default=[1, 8, 64])
    parser.add_argument("--dtypes", type=dtypes, help="by default float32, and bfloat16 where the device computes it")
    parser.add_argument("--ops", default="forward,step")
    parser.add_argument("--choices", default="shipped,tuned")
    parser.add_argument("--repeats", type=whole(2), default=6, help="timed rounds")
    parser.add_argument("--cpu-time", action="store_true", help="count seconds of the thread, not of the clock")
    parser.add_argument("--to", type=Path, default=Path("runs/by-hand/by_hand.csv"), help="the CSV")
    given = parser.parse_args()
    has_bf16 = device.type != "cpu" or computes(torch.bfloat16)
    given.dtypes = given.dtypes or ("float32,bfloat16" if has_bf16 else "float32")
    try:
        cases = list(cases_of(given))
    except (ValueError, AttributeError) as error:
        parser.error(str(error))
    clock = time.thread_time if given.cpu_time else time.perf_counter
    about = {"threads": torch.get_num_threads(), "clock": clock.__name__, **provenance(device_name(device))}
    given.to.parent.mkdir(parents=True, exist_ok=True)
    known = _known(given.to)
    for case in cases:
        if case not in known:
            row = measure(case, device, given.repeats, clock)
            _add(given.to, asdict(case) | row | {"family": this_machine(device).family} | about)
            print(_line(case, row), flush=True)
    print(summary(pd.read_csv(given.to)), given.to, sep="\n")


def cases_of(given: argparse.Namespace) -> Iterator[Case]:
    """All that is asked for, each checked before anything is timed."""
    for option, values in (("ops", ("forward", "step")), ("choices", ("shipped", "rule", "tuned"))):
        if not set(getattr(given, option).split(",")) <= set(values):
            raise ValueError(f"--{option}={getattr(given, option)}: write any of {','.join(values)}")
    for dtype in given.dtypes.split(","):
        for layer in given.layers.split(","):
            for partition in given.partitions.split(","):
                with torch.device("meta"):
                    _layer(layer, partition)
                for batch in given.batches:
                    for op in given.ops.split(","):
                        for choice in given.choices.split(","):
                            yield Case(layer, partition, batch, dtype, op, choice)


def _layer(text: str, partition: str) -> GroupedConv2d:
    channels, _, kernel, stride = parse_layer(text)
    groups = channels if partition == "depthwise" else partition
    return GroupedConv2d(channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False)


def measure(
    case: Case, device: torch.device, repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, object]:
    """Time one case: ours, what a user would write, and the dense layer, in turn.

    Returns:
        The kernel of ours (``apart``: one for each op), seconds of each way, and the ratios with their quartiles over
        the rounds.
    """
    channels, size, _, _ = parse_layer(case.layer)
    torch.manual_seed(0)
    layer, dtype = _layer(case.layer, case.partition), getattr(torch, case.dtype)
    layout = {"device": device, "dtype": dtype, "memory_format": torch.channels_last}
    x = torch.randn(case.batch, channels, size, size).to(**layout)  # type: ignore[call-overload]
    dy = torch.randn(case.batch, channels, *layer.geometry.output_size((size, size))).to(**layout)  # type: ignore[call-overload]
    x.requires_grad_(case.op == "step")

    def step(module: nn.Module, parameters: list[nn.Parameter], kernel: str | None) -> object:
        with nullcontext() if kernel is None else forced_kernel(kernel):
            for parameter in parameters:
                torch.autograd.graph.increment_version(parameter)  # as an optimizer does
            return torch.autograd.grad(module(x), [x, *parameters], dy)

    def forward(module: nn.Module, _: list[nn.Parameter], kernel: str | None) -> object:
        with torch.no_grad(), nullcontext() if kernel is None else forced_kernel(kernel):
            return module(x)

    def call_of(module: nn.Module, kernel: str | None = None) -> Callable[[], object]:
        module.to(**layout).train(case.op == "step")  # type: ignore[call-overload]
        return partial(step if case.op == "step" else forward, module, list(module.parameters()), kernel)

    def by_hand(name: str) -> Callable[[], object]:
        if name == "loop":
            return call_of(Loop(layer))
        if name == "native":
            return call_of(_plain(case.layer, layer.groups))
        return call_of(_layer(case.layer, case.partition), name)

    hand = {name: by_hand(name) for name in HAND if name != "native" or layer.geometry.is_uniform}
    op = "conv2d" if case.op == "forward" else "step"
    with _chosen(case.choice, layer, x):
        kernel_name = Use(op, layer.geometry, dtype, device, True, case.batch, size, size).chosen
        seconds = _rounds(hand, device, ROUNDS_TO_CHOOSE, clock)
        best = min((name for name in hand if seconds[name]), key=lambda name: median(seconds[name]))
        ours, dense = call_of(layer), call_of(_plain(case.layer, groups=1))
        compared = {"best": hand[best], "again": by_hand(best), "ours": ours, "dense": dense}
        seconds |= _rounds(compared, device, repeats, clock)
    share = share_of_dense(layer.geometry)
    ratios = {
        "of_best_by_hand": _ratios(seconds["best"], seconds["ours"]),
        "again_of_best": _ratios(seconds["best"], seconds["again"]),
        "of_ceiling": [share * ratio for ratio in _ratios(seconds["dense"], seconds["ours"])],
    }
    row: dict[str, object] = {"kernel": kernel_name, "best_by_hand": best}
    for name, values in ratios.items():
        lower, middle, upper = quantiles(values, n=4, method="inclusive")
        row |= {name: middle, f"{name}_lower": lower, f"{name}_upper": upper}
    times = {name: median(seconds[name]) if seconds.get(name) else "" for name in ("ours", "dense", "best", *HAND)}
    return row | {f"seconds_{name}": value for name, value in times.items()}


def _plain(text: str, groups: int) -> nn.Conv2d:
    channels, _, kernel, stride = parse_layer(text)
    return nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False)


def _ratios(seconds: list[float], others: list[float]) -> list[float]:
    return [mine / other for mine, other in zip(seconds, others, strict=True)]


@contextmanager
def _chosen(choice: str, layer: GroupedConv2d, x: Tensor) -> Iterator[None]:
    """Have kernels chosen in one way inside the block."""
    machine = this_machine(x.device)
    known: table.Table = {}
    if choice == "tuned":
        with tempfile.TemporaryDirectory() as folder, _environment(XDG_CACHE_HOME=folder):
            tune(layer, x)
            known = table.own(machine)
    elif choice == "shipped" and table.shipped_path(machine).exists():
        _, known = table.read(table.shipped_path(machine))
    with chosen_by(known):
        yield


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _rounds(
    calls: Mapping[str, Callable[[], object]], device: torch.device, repeats: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of each way, round by round; none of those that are far from the fastest."""

    def seconds_of(name: str, times: int) -> float:
        synchronize(device)
        start = clock()
        for _ in range(times):
            calls[name]()
        synchronize(device)
        return (clock() - start) / times

    for _ in range(2):  # what is made once is made by the first, and kept by the second
        for call in calls.values():
            call()
    first = {name: seconds_of(name, 1) for name in calls}
    best = min(first.values())
    running = [name for name in calls if name in JUDGED or first[name] <= HOPELESS * best]
    times = {name: max(1, min(1000, round(SHORT / max(first[name], 1e-6)))) for name in running}
    seconds_by_name: dict[str, list[float]] = {name: [] for name in calls}
    taking_turns = [name for name in running if name != "dense"]  # each follows each, and dense, equally often
    for turn in range(repeats):
        for name in [*order_of_round(taking_turns, turn), *(["dense"] if "dense" in running else [])]:
            calls[name]()  # memory that the way before it gave back is allocated again here
            seconds_by_name[name].append(seconds_of(name, times[name]))
    return seconds_by_name


def _known(path: Path) -> set[Case]:
    """The cases that a file holds."""
    if not path.exists():
        return set()
    rows = pd.read_csv(path)[list(Case.__dataclass_fields__)]
    return {Case(*row) for row in rows.itertuples(index=False)}


def _add(path: Path, row: Mapping[str, object]) -> None:
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        if fresh:
            writer.writeheader()
        writer.writerow({key: f"{x:.4g}" if isinstance(x, float) else x for key, x in row.items()})


def _line(case: Case, row: Mapping[str, Any]) -> str:
    return (
        f"{case.layer:<7} {case.partition:<10} × {case.batch:<3} {case.dtype:<9} {case.op:<8} {case.choice:<8} "
        f"{1e3 * row['seconds_ours']:8.2f} ms; of {row['best_by_hand']:<7}{row['of_best_by_hand']:5.2f}; "
        f"of the ceiling {row['of_ceiling']:5.2f}"
    )


def summary(rows: pd.DataFrame) -> str:
    """Geometric mean, quartiles and worst of both ratios, for each choice, dtype, op and batch."""
    lines = []
    for ratio, goal in GOALS.items():
        groups = rows.groupby(["choice", "dtype", "op", "batch"])[ratio]
        ratios_table = pd.DataFrame(
            {
                "cases": groups.count(),
                "mean": groups.apply(lambda values: float(np.exp(np.log(values).mean()))),
                "lower": groups.quantile(0.25),
                "median": groups.median(),
                "upper": groups.quantile(0.75),
                "worst": groups.min(),
                f"below {goal}": groups.apply(lambda values, goal=goal: int((values < goal).sum())),
            }
        )
        lines += [f"\n{ratio} (goal {goal}; mean: geometric)", ratios_table.to_string(float_format="%.2f")]
    return "\n".join(lines)


if __name__ == "__main__":
    replace_unencodable()
    main()
