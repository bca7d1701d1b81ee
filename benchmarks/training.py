"""Training throughput of AlexNet or the log-groups network: the suite, bare steps, and several seeds at once.

All variants train the same network on the same images, in turn, block by block, so that slow drifts of the machine
affect all of them equally:

- ``plain``: a simple script: nn.Conv2d (uneven groups: one for each group), fp32, NCHW, the batch in memory; steps
  only.
- ``bare``: layers of gconv, channels_last, in the fastest precision of the hardware; steps only.
- ``ours``: an epoch as the suite runs it: gather, crop, mirror, normalise, step, schedule, loss and accuracy, and
  its fraction of the evaluation of the test images.
- ``ours × k``: the same for k seeds at once; images of all seeds together.

Prints images per second (median and quartiles of the blocks) and writes them to a CSV.

    python -m benchmarks.training [--model=alexnet|lognet] [--groups=1,2,4] [--seeds=1,4] [--batch=128] [--steps=6]
        [--blocks=5] [--csv=FILE]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.arguments import whole, whole_numbers
from experiments.data.augment import Views
from experiments.data.datasets import Dataset, Images
from experiments.models import build_model
from experiments.store.runs import provenance
from experiments.terminal import replace_unencodable
from experiments.tracking import Tracker
from experiments.training.batches import EpochBatches
from experiments.training.evaluation import evaluate
from experiments.training.learner import Learner
from experiments.training.loop import train_epoch
from experiments.training.loss_monitor import LossMonitor
from experiments.training.multi_seed import MultiSeedLearner
from experiments.training.recipe import Recipe
from experiments.training.run import choose_kernels
from experiments.training.run_context import RunContext, choose_device, device_name
from gconv import GroupedConv2d

SILENT = Tracker("off", "", "", "", {}, Path())
# For each network: its arguments, the views of its study, and test images per training image.
MODELS: dict[str, tuple[dict[str, Any], Views, float]] = {
    "alexnet": ({"norm": "batch", "head": "average"}, Views(128, 112), 3925 / 9469 / 3),  # tested every third epoch
    "lognet": ({"width": 32}, Views(32, 32, padding=4), 10000 / 50000),
}
GROUPS = {"alexnet": "1,2,4", "lognet": "1,4,log:4"}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Training throughput, side by side.")
    parser.add_argument("--model", choices=MODELS, default="alexnet")
    parser.add_argument("--groups", help="comma-separated; 1,2,4 or, of lognet, 1,4,log:4 by default")
    parser.add_argument("--seeds", type=whole_numbers, default=[1], help="at once, comma-separated: 1,3,8")
    parser.add_argument("--batch", type=whole(1), default=128)
    parser.add_argument("--steps", type=whole(1), default=6, help="steps in a block")
    parser.add_argument("--blocks", type=whole(1), default=5, help="timed blocks of each way")
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    choose_kernels()
    rows = []
    for groups in (given.groups or GROUPS[given.model]).split(","):
        ways = ways_to_train(given.model, groups, given.batch, given.steps, given.seeds)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for block in range(given.blocks + 1):
            for name, (networks, train) in ways.items():
                start = time.perf_counter()
                train()
                if block:  # the first warms up
                    rates[name].append(networks * given.batch * given.steps / (time.perf_counter() - start))
        for name, values in rates.items():
            r = row(np.asarray(values), np.asarray(rates["plain"]))
            rows.append({"model": given.model, "groups": groups, "way": name, **r})
            print(
                f"{given.model} {groups:<7}{name:<10}{r['images_per_s']:>9.1f} images/s "
                f"[{r['lower']:.1f}, {r['upper']:.1f}]  {r['ratio']:.2f} × plain",
                flush=True,
            )
        if given.csv:  # after every partition, so that an interrupted run keeps its results
            given.csv.parent.mkdir(parents=True, exist_ok=True)
            table = pd.DataFrame(rows).assign(batch=given.batch, **provenance(device_name(choose_device("auto"))))
            table.to_csv(given.csv, index=False)


def row(rates: np.ndarray, plain: np.ndarray) -> dict[str, float]:
    """Return median and quartiles over the blocks, and the median of the ratios block by block."""
    lower, median, upper = np.percentile(rates, [25, 50, 75])
    return {"images_per_s": median, "lower": lower, "upper": upper, "ratio": float(np.median(rates / plain))}


def ways_to_train(
    name: str, groups: str, batch: int, steps: int, seeds: list[int]
) -> dict[str, tuple[int, Callable[[], None]]]:
    """Return for each variant the number of networks trained at once, and a call that trains them for some steps."""
    arguments, views, test_share = MODELS[name]
    images = random_images(batch * steps, views.image_size, test_share)
    context = RunContext.of(images, views, Recipe(epochs=1000, batch_size=batch))
    size = views.crop_size
    x = torch.randn(batch, 3, size, size, device=context.device)
    y = torch.randint(10, (batch,), device=context.device)

    def fresh() -> nn.Module:
        return build_model(name, size, classes=10, groups=groups, **arguments)

    def bare(model: nn.Module, x: Tensor, autocast: bool) -> Callable[[], None]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)

        def train() -> None:
            model.train()
            for _ in range(steps):
                with torch.autocast(context.device.type, context.dtype, enabled=autocast):
                    loss = F.cross_entropy(model(x).float(), y, label_smoothing=0.1)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            x.new_zeros(1).item()  # waits for the device

        return train

    def ours(count: int) -> Callable[[], None]:
        total = context.recipe.epochs * steps
        networks = [fresh() for _ in range(count)]
        one = count == 1
        learner = Learner(networks[0], context, total) if one else MultiSeedLearner(networks, context, total)
        epochs = 0

        def train() -> None:
            nonlocal epochs
            batches = [EpochBatches(context, seed, epochs) for seed in range(count)]
            with LossMonitor(learner, batches, epochs, "bench", [SILENT] * count) as monitor:
                train_epoch(learner, batches, monitor.after_step)
            epochs += 1
            for network in learner.networks:
                evaluate(network, context)  # waits for the device

        return train

    fast = fresh().to(context.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    mixed = context.dtype != torch.float32
    ways = {
        "plain": (1, bare(as_plain_torch(fresh()).to(context.device), x, autocast=False)),
        "bare": (1, bare(fast, x.to(memory_format=torch.channels_last), autocast=mixed)),
    }
    return ways | {f"ours × {k}" if k > 1 else "ours": (k, ours(k)) for k in seeds}


class ByGroup(nn.Module):
    """Groups of unequal sizes as usually written by hand: split, convolve, concatenate."""

    def __init__(self, conv: GroupedConv2d) -> None:
        super().__init__()
        cut = conv.geometry
        self.sizes = cut.in_groups.sizes
        self.parts = nn.ModuleList(
            nn.Conv2d(i, o, cut.kernel_size, cut.stride, cut.padding, bias=conv.bias is not None)
            for i, o in zip(cut.in_groups.sizes, cut.out_groups.sizes, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, O, H', W')."""
        return torch.cat([part(x_g) for part, x_g in zip(self.parts, x.split(self.sizes, 1), strict=True)], 1)


def as_plain_torch(model: nn.Module) -> nn.Module:
    """Return the same network made of torch's own layers."""
    for name, conv in list(model.named_modules()):
        if isinstance(conv, GroupedConv2d):
            plain: nn.Module = ByGroup(conv)
            if conv.geometry.is_uniform:
                cut = conv.geometry
                plain = nn.Conv2d(
                    conv.in_channels,
                    conv.out_channels,
                    cut.kernel_size,
                    cut.stride,
                    cut.padding,
                    groups=conv.groups,
                    bias=conv.bias is not None,
                )
            model.set_submodule(name, plain)
    return model


def random_images(count: int, size: int, test_share: float) -> Dataset:
    """Return random images, and the fraction of test images that an epoch evaluates on average."""

    def images(number: int) -> Images:
        pixels = torch.randint(0, 255, (number, size, size, 3), dtype=torch.uint8)
        return Images(pixels, torch.randint(10, (number,)))

    channels = torch.full((3,), 127.0), torch.full((3,), 70.0)
    test = images(max(1, round(count * test_share)))
    return Dataset(images(count), test, tuple("0123456789"), "random", *channels, ())


if __name__ == "__main__":
    replace_unencodable()
    main()
