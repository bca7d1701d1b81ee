"""Overhead of a kept run: run store, progress, offline wandb and checkpoints, as fractions of the training time.

A network is trained as a study trains it: under a lease, with checkpoints, metrics, a progress bar on its own terminal,
and an offline wandb run that logs metrics as often as the suite does. A pause after each step makes all steps equally
long, on any machine. The time spent inside each part is measured at its calls. The processor time of all threads and of
wandb's own process is reported too: it includes work in the background, which costs time only if no core is free.

    python -m benchmarks.overhead [--rate=20] [--epochs=12] [--steps=25] [--width=32] [--csv=FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pty
import resource
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from experiments.data.augment import Views
from experiments.data.datasets import Dataset, Images
from experiments.models import build_model
from experiments.store import leases, progress, runs
from experiments.store.runs import Run, provenance
from experiments.terminal import replace_unencodable
from experiments.tracking import Tracker
from experiments.training.recipe import Recipe
from experiments.training.run import train_run
from experiments.training.run_context import RunContext, device_name

BATCH = 4
# part -> methods whose time it counts; nested calls count once, for the outermost
PARTS: dict[str, Sequence[tuple[Any, str]]] = {
    "checkpoints": [(Run, "save_checkpoint")],
    "run store": [(Run, n) for n in ("begin", "add_metrics", "write_metrics", "finish")]
    + [(runs, "claim"), (leases.Lease, "release")],
    "progress": [(tqdm, "update"), (tqdm, "__iter__"), (tqdm, "set_postfix"), (tqdm, "refresh"), (tqdm, "close")],
    "wandb": [(Tracker, n) for n in ("log", "log_step")],
}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Cost of keeping a run, relative to its training.")
    parser.add_argument("--rate", type=float, default=20.0, help="steps a second")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=25, help="of an epoch")
    parser.add_argument("--width", type=int, default=32, help="of the network: how large a checkpoint is")
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, _terminal():
        table = measure(Path(folder), given.rate, given.epochs, given.steps, given.width)
    print(table.to_string(index=False, float_format="%.3f"))
    if given.csv:
        table.assign(**provenance(device_name(torch.device("cpu")))).to_csv(given.csv, index=False)


def measure(folder: Path, rate: float, epochs: int, steps: int, width: int) -> pd.DataFrame:
    """Train once and return for each part its seconds in the training loop, and their fraction of it."""
    spent: dict[str, float] = defaultdict(float)
    recipe = Recipe(epochs=epochs, batch_size=BATCH, device="cpu", precision="fp32", evaluate_every=epochs)
    context = RunContext.of(_images(BATCH * steps), Views(16, 16), recipe)
    model = build_model("small", classes=2, groups=1, width=width)
    pace = _Pace(1 / rate)
    run = Run.of(folder, "overhead", {"seed": 0, "data": "noise"})
    before, children = time.process_time(), _children()
    tracker = Tracker("offline", "overhead", "overhead", "overhead", {}, folder)
    with contextlib.ExitStack() as stack:
        for part, methods in PARTS.items():
            for owner, name in methods:
                stack.enter_context(_timed(owner, name, part, spent))
        lease = stack.enter_context(run.lock())
        held = replace(run, lease=lease)
        held.begin()
        model.register_full_backward_hook(lambda *_: pace.keep())
        start = time.perf_counter()
        values = train_run(held, model, context, tracker)
        whole = time.perf_counter() - start
        held.finish("done", values, "cpu")
    tracker.finish({})
    size = (run.folder / "checkpoint.pt").stat().st_size
    rows = [[part, spent[part], 100 * spent[part] / whole] for part in PARTS]
    together = sum(spent[part] for part in PARTS if part != "checkpoints")
    rows.append(["all but checkpoints", together, 100 * together / whole])
    behind = _children() - children
    rows.append(["wandb's own process", behind, 100 * behind / whole])
    rows.append(
        ["this process, all threads", time.process_time() - before, 100 * (time.process_time() - before) / whole]
    )
    table = pd.DataFrame(rows, columns=["part", "seconds", "percent"])
    return table.assign(
        steps_per_second=epochs * steps / whole,
        checkpoint_MiB=size / 2**20,
        share_of_checkpoints=progress.MAX_CHECKPOINT_SHARE,
    )


class _Pace:
    """Pauses that make all steps equally long on any machine."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._next = seconds, 0.0

    def keep(self) -> None:
        now = time.perf_counter()
        time.sleep(max(0.0, self._next - now))
        self._next = max(now, self._next) + self._seconds


def _images(count: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)

    def noise(number: int) -> Images:
        pixels = torch.randint(0, 256, (number, 16, 16, 3), generator=generator)
        return Images(pixels.to(torch.uint8), torch.arange(number) % 2)

    return Dataset(noise(count), noise(32), ("a", "b"), "noise", torch.full((3,), 128.0), torch.full((3,), 74.0), ())


_inside = threading.local()


@contextlib.contextmanager
def _timed(owner: Any, name: str, part: str, spent: dict[str, float]) -> Iterator[None]:
    """Return a method that adds its time to a part; of a generator the time inside it."""
    original: Callable[..., Any] = getattr(owner, name)

    def timed(*arguments: Any, **named: Any) -> Any:
        if getattr(_inside, "part", None) or threading.current_thread() is not threading.main_thread():
            return original(*arguments, **named)
        _inside.part, start = part, time.perf_counter()
        try:
            return original(*arguments, **named)
        finally:
            spent[part] += time.perf_counter() - start
            _inside.part = None

    def turns(*arguments: Any, **named: Any) -> Iterator[Any]:
        given = iter(original(*arguments, **named))
        while True:
            start = time.perf_counter()
            try:
                value = next(given)
            except StopIteration:
                return
            finally:
                spent[part] += time.perf_counter() - start
            yield value

    setattr(owner, name, turns if name == "__iter__" else timed)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextlib.contextmanager
def _terminal() -> Iterator[None]:
    """Make standard error a pseudo-terminal, so that the progress bar is drawn."""
    reader, writer = pty.openpty()
    kept = os.dup(2)
    os.dup2(writer, 2)

    def read() -> None:
        with contextlib.suppress(OSError):
            while os.read(reader, 1 << 16):
                pass

    threading.Thread(target=read, daemon=True).start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)


def _children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    replace_unencodable()
    main()
