"""Measure the kernels of common layers on this machine into the table by which kernels are chosen.

Layer by layer the kernels take turns until it is certain which is the fastest; those that are clearly slower drop out
(``gconv.kernels.race``). What is left when time is up keeps the rule. ``gconv.tune`` does the same for a model's own
layers.

    python -m benchmarks.learn [--layers=64@32,128@16] [--partitions=2,log:4] [--dtypes=float32,bfloat16]
        [--layouts=channels_last,contiguous] [--batches=16,1] [--seconds=110] [--cpu-time]

``--cpu-time`` counts the seconds of the thread in place of those of the clock, for one thread while others work.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

import torch

from benchmarks.arguments import dtypes, whole_numbers
from benchmarks.kernels import LAYERS, parse_layer
from experiments.terminal import replace_unencodable
from experiments.training.run_context import choose_device
from gconv import GroupedConv2d
from gconv.kernels import OPS, table
from gconv.kernels.machine import computes, this_machine
from gconv.tuning import Use, measure

PARTITIONS = "log:4,log:3,log:5,3:2:1:1:1,2,8"


def main() -> None:
    """Measure until all is measured or time is up."""
    device = choose_device("auto")
    parser = argparse.ArgumentParser(description="Measure this machine's kernels, for the choice between them.")
    parser.add_argument("--layers", default=LAYERS.get(device.type, LAYERS["cpu"]))
    parser.add_argument("--partitions", default=PARTITIONS)
    parser.add_argument("--dtypes", type=dtypes, help="by default float32, and bfloat16 where the device computes it")
    parser.add_argument("--layouts", default="channels_last,contiguous")
    parser.add_argument("--batches", type=whole_numbers, default=[16, 1])
    parser.add_argument("--seconds", type=float, default=110.0, help="after which nothing is begun")
    parser.add_argument("--cpu-time", action="store_true", help="count seconds of the thread, not of the clock")
    given = parser.parse_args()
    given.dtypes = given.dtypes or (
        "float32,bfloat16" if device.type != "cpu" or computes(torch.bfloat16) else "float32"
    )
    try:
        uses = list(uses_of(given, device))
    except (ValueError, AttributeError) as error:
        parser.error(str(error))
    machine = this_machine(device)
    try:
        table.save(machine)
    except OSError:
        sys.exit(f"kernel table {table.write_failure(machine)}; nothing is measured")
    clock = time.thread_time if given.cpu_time else time.perf_counter
    start = clock()
    until, done = start + given.seconds, 0
    for use in uses:
        if (now := clock()) >= until:
            break
        measure(use, now + 2 * (until - now) / (len(uses) - done), clock)
        done += 1
    left = f", {len(uses) - done} left when time was up" if done < len(uses) else ""
    print(f"{done} kinds of op measured in {clock() - start:.0f} s{left}; {machine}")
    if failure := table.write_failure(machine):
        sys.exit(f"kernel table {failure}; the times are lost")
    print(f"table: {table.own_path(machine)}")


def uses_of(given: argparse.Namespace, device: torch.device) -> Iterator[Use]:
    """Return the requested ops, each kind once; raise for a wrong one before anything is timed."""
    known = set()
    for layout in given.layouts.split(","):
        if layout not in ("channels_last", "contiguous"):
            raise ValueError(f"--layouts={layout}: write channels_last or contiguous")
        for dtype in given.dtypes.split(","):
            for batch in given.batches:
                for text in given.layers.split(","):
                    channels, size, kernel, stride = parse_layer(text)
                    for cut in given.partitions.split(","):
                        window = kernel, stride, kernel // 2
                        layer = GroupedConv2d(channels, channels, *window, groups=cut, device="meta")
                        case = getattr(torch, dtype), device, layout == "channels_last", batch, size, size
                        for use in (Use(op, layer.geometry, *case) for op in (*OPS, "step")):
                            if use.kind not in known:
                                known.add(use.kind)
                                yield use


if __name__ == "__main__":
    replace_unencodable()
    main()
