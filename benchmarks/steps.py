"""Whole training steps of networks with filter groups: the chosen kernels compared with single ATen kernels.

Every variant trains a copy of the same network on the same batch, in turn, so that slow drifts of the machine affect
all of them equally. ``loop`` is the usual handwritten code for uneven groups (split, convolve, concatenate); ``dense``
is the same network without groups; ``conv2d max-autotune`` computes equal groups by ``nn.Conv2d`` as Inductor tunes it.
On a GPU every variant is timed under every setting of cuDNN.

    python -m benchmarks.steps [--nets=lognet:log:4,alexnet:2] [--ways=dense,ours,loop,packed]
        [--cudnn=deterministic,free,benchmark] [--batch=64] [--repeats=15] [--csv=FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.arguments import whole
from benchmarks.plain import AUTOTUNED, autotuned, cudnn, cudnn_names
from experiments.models import build_model
from experiments.store.runs import provenance
from experiments.terminal import replace_unencodable
from experiments.training.run_context import choose_device, choose_dtype, device_name
from gconv import forced_kernel
from gconv.cost import measure_latencies

SIZES = {"alexnet": 112, "lognet": 32, "small": 32}
EXTRA = {"alexnet": {"norm": "batch", "head": "average"}}
REFERENCE = "loop"  # denominator of the ratios


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Whole training steps, our choice of kernels against ATen's ways.")
    parser.add_argument("--nets", default="lognet:log:3,lognet:log:4,lognet:log:5,alexnet:2,alexnet:4,alexnet:log:3")
    parser.add_argument("--ways", default=f"dense,ours,loop,packed,masked,{AUTOTUNED}")
    parser.add_argument("--cudnn", help="settings of cuDNN: deterministic, free, benchmark; on a GPU all of them")
    parser.add_argument("--batch", type=whole(1), default=64)
    parser.add_argument("--repeats", type=whole(2), default=15)
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    device = choose_device("auto")
    rows = []
    try:
        settings = cudnn_names(device, given.cudnn)
    except ValueError as error:
        parser.error(str(error))
    for net in given.nets.split(","):
        name, _, groups = net.partition(":")
        for setting in settings:
            torch._dynamo.reset()
            with cudnn(setting):
                ways = [way for way in given.ways.split(",") if way != AUTOTUNED or groups.isdigit()]
                calls = {way: step_of(name, groups, way, given.batch, device) for way in ways}
                times = measure_latencies(calls, device, given.repeats)
            for way, time in times.items():
                ratio = time.median / times[REFERENCE].median if REFERENCE in times else float("nan")
                rows.append({"net": name, "groups": groups, "cudnn": setting, "way": way, "ratio": ratio})
                rows[-1] |= {"ms": time.median * 1e3, "lower": time.lower * 1e3, "upper": time.upper * 1e3}
                print(
                    f"{net:<16}{setting:<14}{way:<20}{time.median * 1e3:>9.1f} ms "
                    f"[{time.lower * 1e3:.1f}, {time.upper * 1e3:.1f}]{ratio:>7.2f} × {REFERENCE}",
                    flush=True,
                )
        if given.csv:  # after every network, so that an interrupted run keeps its results
            given.csv.parent.mkdir(parents=True, exist_ok=True)
            table = pd.DataFrame(rows).assign(batch=given.batch, **provenance(device_name(device)))
            table.to_csv(given.csv, index=False)


def step_of(name: str, groups: str, way: str, batch: int, device: torch.device) -> Callable[[], None]:
    """Return a function that does one training step: forward, backward, update."""
    torch.manual_seed(0)
    size = SIZES[name]
    cut = "1" if way == "dense" else groups
    model = build_model(name, size, classes=10, groups=int(cut) if cut.isdigit() else cut, **EXTRA.get(name, {}))
    model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    x = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    y = torch.randint(10, (batch,), device=device)
    kernel = {"dense": None, "ours": None, AUTOTUNED: "native"}.get(way, way)
    compute = autotuned(model, device) if way == AUTOTUNED else model
    return partial(_step, compute, optimizer, x, y, kernel, choose_dtype("auto", device))


def _step(
    model: Callable[[Tensor], Tensor],
    optimizer: torch.optim.SGD,
    x: Tensor,
    y: Tensor,
    kernel: str | None,
    dtype: torch.dtype,
) -> None:
    with forced_kernel(kernel) if kernel else nullcontext():
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(model(x).float(), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


if __name__ == "__main__":
    replace_unencodable()
    main()
