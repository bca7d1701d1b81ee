"""Overhead of a local sweep beyond its runs: ``python -m benchmarks.sweep [--points=12] [--json]``.

A random search over runs of about one second, on photographs, by one worker. The overhead of a point is the time from
the end of the run before to its own end, minus the seconds of training and of the evaluation of the test images. It
includes the suggestion, its transfer, the index of the images, building and tracing the network, checkpoint and
records. The first point also starts the worker and is reported separately.
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
from experiments.sweep.worker import SweepContext, plan_one
from experiments.terminal import replace_unencodable
from experiments.training.evaluation import evaluate

MAX_OVERHEAD_S = 0.5  # per point
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
        points: number of points, at least 2.
        method: ``random`` or ``bayes``.

    Returns:
        Seconds: ``start_up`` until the first point has ended, minus its run; ``run``, the median of a training with
        its evaluation; ``overhead``, the mean of the points after the first, and ``worst``, their maximum.
    """
    ended: list[float] = []

    class Timed(LocalSweep):
        def _end(self, point: Point, state: str, reason: str) -> None:
            super()._end(point, state, reason)
            ended.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "example.yaml"
        path.write_text(FILE.replace("METHOD", method), encoding="utf-8")
        sweep, place = read_sweep(path), SweepContext("example", "quickstart", Path(root) / "sweeps")
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
    """Return the seconds in which a run evaluates its test images."""
    context, model = planned.context(), planned.fresh_model()
    model.to(context.device, memory_format=torch.channels_last)
    seconds = []
    for _ in range(4):
        begun = time.perf_counter()
        evaluate(model, context)
        seconds.append(time.perf_counter() - begun)
    return median(seconds[1:])


def main(arguments: list[str]) -> int:
    """Measure random and bayes search and print the results; return 1 if the overhead is over the limit."""
    points = next((int(a.split("=")[1]) for a in arguments if a.startswith("--points=")), 12)
    overheads = {method: measure(points, method) for method in ("random", "bayes")}
    if "--json" in arguments:
        print(json.dumps(overheads, indent=1))
    else:
        for method, seconds in overheads.items():
            print(
                f"{method}: {points} points of {seconds['run']:.2f} s; overhead {seconds['overhead']:.2f} s a point, "
                f"worst {seconds['worst']:.2f} (limit {MAX_OVERHEAD_S:g}); start-up {seconds['start_up']:.1f} s"
            )
    return int(any(seconds["overhead"] > MAX_OVERHEAD_S for seconds in overheads.values()))


if __name__ == "__main__":
    replace_unencodable()
    sys.exit(main(sys.argv[1:]))
