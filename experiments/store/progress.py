"""Progress of a run, saved so that a resumed run ends with the same bits.

The checkpoint alone counts. ``metrics.jsonl`` follows it, and is written anew from it when a run is resumed.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from experiments.store import stop_signal
from experiments.store.runs import Run

MAX_CHECKPOINT_SHARE = 0.02  # of the training time
SAVE_INTERVAL_S = 300.0  # between two checkpoints of one epoch


@dataclass(frozen=True)
class PartialEpoch:
    """Steps of an epoch that were taken before an interruption.

    Attributes:
        step: number of steps.
        total: loss and accuracy summed over them, (2,).
        generator: state of the epoch's random numbers after them.
        seconds: spent on them, as the run's share of the time.
    """

    step: int
    total: Tensor
    generator: Tensor
    seconds: float


class Stateful(Protocol):
    """Networks in training whose states can be saved and restored, by their index."""

    def state(self, index: int) -> dict[str, Any]:
        """Return the state of a network, its optimizer and its schedule."""
        ...

    def restore(self, index: int, state: dict[str, Any]) -> None:
        """Continue from a state."""
        ...


class Progress:
    """Progress of one run from its last checkpoint to its end.

    Attributes:
        history: metrics of every whole epoch.
    """

    def __init__(self, run: Run, learner: Stateful, index: int = 0, together: int = 1) -> None:
        """Prepare the progress; ``restore`` reads the checkpoint.

        Args:
            run: folder of checkpoints and metrics.
            learner: trains it.
            index: place of the run's network among those that the learner trains together.
            together: number of these networks; they share the time.
        """
        self.history: list[dict[str, float]] = []
        self._run, self._learner, self._index, self._together = run, learner, index, together
        self._device = torch.device("cpu")
        self._part: PartialEpoch | None = None
        self._at: tuple[int, Tensor, torch.Generator] | None = None
        self._started = 0.0
        self._saved, self._cost = time.monotonic(), 0.0

    def restore(self, device: torch.device) -> None:
        """Continue from the last checkpoint, or begin the run if there is none.

        Args:
            device: its random numbers are saved as well as those of the CPU.
        """
        self._device = device
        checkpoint = self._run.load_checkpoint()
        if checkpoint is None:
            torch.manual_seed(self._run.seed)  # dropout's random numbers do not depend on earlier draws
        else:
            self._learner.restore(self._index, checkpoint)
            _set_rng_state(checkpoint["rng"], self._device)
            self.history = checkpoint["history"]
            self._part = PartialEpoch(**checkpoint["part"]) if checkpoint.get("part") else None
        self._run.write_metrics(self.history)  # it may hold epochs after the checkpoint, or end in half a line

    def begin_epoch(self) -> PartialEpoch | None:
        """Return the steps of the next epoch that were taken before, if any."""
        part, self._part, self._at = self._part, None, None
        self._started = time.perf_counter() - (part.seconds if part else 0.0) * self._together
        return part

    def seconds(self) -> float:
        """Return this run's share of the seconds spent on the epoch so far, those before an interruption included."""
        return (time.perf_counter() - self._started) / self._together

    def note_step(self, step: int, total: Tensor, generator: torch.Generator) -> None:
        """Note the state of the epoch after a step.

        Args:
            step: counted from 1.
            total: loss and accuracy summed over the steps, (2,).
            generator: random numbers of the epoch.
        """
        self._at = step, total, generator

    def save_if_due(self) -> None:
        """Save before stopping, or if the last checkpoint is old; between two steps or two batches of an evaluation."""
        if stop_signal.pending() or time.monotonic() - self._saved > max(
            SAVE_INTERVAL_S, self._cost / MAX_CHECKPOINT_SHARE
        ):
            self.save()

    def save(self) -> None:
        """Save the epoch so far; a run that diverges keeps its last good checkpoint."""
        if self._at is not None and self._at[1].isfinite().all():
            self._save(self._at)

    def end_epoch(self, metrics: dict[str, float], last: bool) -> None:
        """Add a whole epoch.

        Args:
            metrics: metrics of the epoch.
            last: save it in any case; otherwise if the time since the last checkpoint allows for another.
        """
        self.history.append(metrics)
        self._at = None
        if last or time.monotonic() - self._saved >= self._cost / MAX_CHECKPOINT_SHARE:
            self._save(None)
        self._run.add_metrics(metrics)

    def _save(self, at: tuple[int, Tensor, torch.Generator] | None) -> None:
        start = time.monotonic()
        part = asdict(PartialEpoch(at[0], at[1].cpu(), at[2].get_state(), self.seconds())) if at else None
        saved = {"rng": _rng_state(self._device), "history": self.history, "part": part}
        self._run.save_checkpoint({**self._learner.state(self._index), **saved})
        self._saved = time.monotonic()
        self._cost = self._saved - start


def _rng_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def _set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])
