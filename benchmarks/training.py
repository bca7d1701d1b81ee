"""Training throughput of AlexNet with 1, 2 and 4 groups: ours, whole, against bare steps.

Three ways train the same network on the same images, in turn, block by block, so that a drifting machine treats them
alike:

- ``plain``: a script as most people write it first: nn.Conv2d, fp32, NCHW, the batch in place already; steps alone.
- ``bare``: the same in channels_last and in the precision that suits the hardware; steps alone.
- ``ours``: an epoch as the suite runs it: gather, crop, mirror, normalise, step, schedule, loss and accuracy kept, and
  its share of the evaluation of the test images.

Prints images per second (median and quartiles of the blocks) and writes them to a CSV.

    python -m benchmarks.training [--groups=1,2,4] [--batch=128] [--steps=6] [--blocks=5] [--csv=FILE]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from experiments.augment import Views
from experiments.data import Dataset, Images
from experiments.models import build_model
from experiments.store.runs import provenance
from experiments.training.epoch import Stream, evaluate, train_epoch
from experiments.training.learner import Learner
from experiments.training.recipe import Recipe
from experiments.training.setting import Setting, choose_device, device_name

TEST_SHARE = 3925 / 9469  # Imagenette's test images per training image
EVALUATE_EVERY = 3  # epochs, as in the study


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Training throughput of AlexNet, side by side.")
    parser.add_argument("--groups", default="1,2,4")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=6, help="steps in a block")
    parser.add_argument("--blocks", type=int, default=5, help="timed blocks of each way")
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    rows = []
    for groups in given.groups.split(","):
        ways = ways_to_train(int(groups), given.batch, given.steps)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for block in range(given.blocks + 1):
            for name, train in ways.items():
                start = time.perf_counter()
                train()
                if block:  # the first warms up
                    rates[name].append(given.batch * given.steps / (time.perf_counter() - start))
        rows += [
            row(int(groups), name, np.asarray(values), np.asarray(rates["plain"])) for name, values in rates.items()
        ]
        for r in rows[-len(ways) :]:
            print(
                f"groups {r['groups']}  {r['way']:<6}{r['images_per_s']:>8.1f} images/s "
                f"[{r['lower']:.1f}, {r['upper']:.1f}]  {r['ratio']:.2f} × plain",
                flush=True,
            )
    table = pd.DataFrame(rows).assign(**provenance(device_name(choose_device("auto"))))
    if given.csv:
        table.to_csv(given.csv, index=False)


def row(groups: int, way: str, rates: np.ndarray, plain: np.ndarray) -> dict[str, object]:
    """Median and quartiles over the blocks, and the median of the block-by-block ratios."""
    lower, median, upper = np.percentile(rates, [25, 50, 75])
    ratio = float(np.median(rates / plain))
    return {"groups": groups, "way": way, "images_per_s": median, "lower": lower, "upper": upper, "ratio": ratio}


def ways_to_train(groups: int, batch: int, steps: int) -> dict[str, Callable[[], object]]:
    """The three ways, each a call that trains for ``steps`` steps."""
    setting = Setting.of(random_images(batch * steps), Views(128, 112), Recipe(epochs=1000, batch_size=batch))
    arguments = {"classes": 10, "groups": groups, "norm": "batch", "head": "average", "input_size": 112}
    x = torch.randn(batch, 3, 112, 112, device=setting.device)
    y = torch.randint(10, (batch,), device=setting.device)

    def bare(model: nn.Module, x: torch.Tensor, autocast: bool) -> Callable[[], None]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)

        def train() -> None:
            model.train()
            for _ in range(steps):
                with torch.autocast(setting.device.type, setting.dtype, enabled=autocast):
                    loss = F.cross_entropy(model(x).float(), y, label_smoothing=0.1)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            x.new_zeros(1).item()  # waits for the device

        return train

    ours = build_model("alexnet", **arguments)
    learner = Learner(ours, setting, setting.recipe.epochs * steps)
    epochs = 0

    def train_ours() -> None:
        nonlocal epochs
        train_epoch(learner, [Stream(setting, 0, epochs)], epochs, "bench")
        epochs += 1
        evaluate(ours, setting)

    fast = build_model("alexnet", **arguments).to(setting.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    mixed = setting.dtype != torch.float32
    return {
        "plain": bare(plain_alexnet(groups).to(setting.device), x, autocast=False),
        "bare": bare(fast, x.to(memory_format=torch.channels_last), autocast=mixed),
        "ours": train_ours,
    }


def plain_alexnet(groups: int) -> nn.Sequential:
    """AlexNet from torch's own layers alone."""

    def conv(*arguments: int, **named: int) -> list[nn.Module]:
        layer = nn.Conv2d(*arguments, bias=False, **named)  # type: ignore[arg-type]
        return [layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU(inplace=True)]

    return nn.Sequential(
        *conv(3, 96, 11, stride=4),
        nn.MaxPool2d(3, 2),
        *conv(96, 256, 5, padding=2, groups=groups),
        nn.MaxPool2d(3, 2),
        *conv(256, 384, 3, padding=1),
        *conv(384, 384, 3, padding=1, groups=groups),
        *conv(384, 256, 3, padding=1, groups=groups),
        nn.MaxPool2d(3, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def random_images(count: int) -> Dataset:
    """As many random images of 128 pixels, and the share of test images that an epoch evaluates on average."""

    def images(number: int) -> Images:
        return Images(torch.randint(0, 255, (number, 128, 128, 3), dtype=torch.uint8), torch.randint(10, (number,)))

    test = max(1, round(count * TEST_SHARE / EVALUATE_EVERY))
    channels = torch.full((3,), 127.0), torch.full((3,), 70.0)
    return Dataset(images(count), images(test), tuple("0123456789"), "random", *channels, ())


if __name__ == "__main__":
    main()
