"""What a local sweep costs beside its runs: ``python -m benchmarks.sweep [--points=12] [--json]``.

A random search of about one second a run on photographs, by one worker. Overhead of a point is the time from the end of
the run before to its own end, less the seconds of its training and of the evaluation of the test images: suggesting,
handing over, reading the images' index, building and tracing the network, checkpoint and records, all included. The
first point also starts the worker and is told apart.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from experiments.sweep.engine import LocalSweep, Point, suggest
from experiments.sweep.file import read_sweep
from experiments.sweep.worker import Place, plan_one
from experiments.terminal import show_every_sign
from experiments.training.evaluation import evaluate

LIMIT = 0.5  # seconds a point
FILE = """\
program: experiments
command: ["${env}", "${interpreter}", -m, "${program}", run, quickstart, --model.width=4, --recipe.epochs=1,
          --recipe.batch_size=384, --seeds=1, "${args}"]
method: METHOD
metric: {name: test_accuracy, goal: maximize}
parameters:
  recipe.lr: {distribution: log_uniform_values, min: 0.02, max: 1.0}
  model.groups: {values: [1, 2, 4]}
"""


def measure(points: int, method: str = "random") -> dict[str, float]:
    """Run a sweep in a temporary folder.

    Args:
        points: at least 2.
        method: ``random`` or ``bayes``.

    Returns:
        Seconds: ``start_up`` until the first point has ended, less its run; ``run``, the median of a training with
        its evaluation; ``overhead``, the mean of the points after the first, and ``worst`` of them.
    """
    ended: list[float] = []

    class Timed(LocalSweep):
        def _end(self, point: Point, state: str, reason: str) -> None:
            super()._end(point, state, reason)
            ended.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "example.yaml"
        path.write_text(FILE.replace("METHOD", method), encoding="utf-8")
        sweep, place = read_sweep(path), Place("example", "quickstart", Path(root) / "sweeps")
        _, planned = plan_one(place, sweep.of_one_run(suggest(sweep, []) or {}, []))  # the images are decoded here
        evaluation = _evaluation(planned)
        (place.root / place.sweep).mkdir(parents=True)
        begun = time.perf_counter()
        timed = Timed(sweep, place, [], points, 1)
        timed.run()
    trained = [point.seconds for point in timed.points]
    overhead = np.diff(ended) - trained[1:] - evaluation
    return {
        "points": points,
        "start_up": ended[0] - begun - trained[0] - evaluation,
        "run": median(trained) + evaluation,
        "overhead": float(overhead.mean()),
        "worst": float(overhead.max()),
    }


def _evaluation(planned: Any) -> float:
    """Seconds in which a run looks at its test images."""
    context, model = planned.context(), planned.fresh_model()
    model.to(context.device, memory_format=torch.channels_last)
    seconds = []
    for _ in range(4):
        begun = time.perf_counter()
        evaluate(model, context)
        seconds.append(time.perf_counter() - begun)
    return median(seconds[1:])


def main(arguments: list[str]) -> int:
    """Measure random and bayes search and print it; returns 1 where the overhead is over the limit."""
    points = next((int(a.split("=")[1]) for a in arguments if a.startswith("--points=")), 12)
    found = {method: measure(points, method) for method in ("random", "bayes")}
    if "--json" in arguments:
        print(json.dumps(found, indent=1))
    else:
        for method, seconds in found.items():
            print(
                f"{method}: {points} points of {seconds['run']:.2f} s; overhead {seconds['overhead']:.2f} s a point, "
                f"worst {seconds['worst']:.2f} (limit {LIMIT:g}); start-up {seconds['start_up']:.1f} s"
            )
    return int(any(seconds["overhead"] > LIMIT for seconds in found.values()))


if __name__ == "__main__":
    show_every_sign()
    sys.exit(main(sys.argv[1:]))
