"""How far a run has come: saved so that it goes on to the same bits, and no more often than it can afford.

The checkpoint is the only truth; ``metrics.jsonl`` follows it, and is written anew from it when a run goes on.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from experiments.store import stop_signal
from experiments.store.runs import Run

MAX_CHECKPOINT_SHARE = 0.02  # of the time, that checkpoints may take
SAVE_INTERVAL_S = 300.0  # seconds of an epoch after which its part is saved


@dataclass(frozen=True)
class PartialEpoch:
    """The part of an epoch that is trained already.

    Attributes:
        step: steps taken.
        total: loss and accuracy summed over them, (2,).
        generator: state of the epoch's random numbers after them.
        seconds: spent on them.
    """

    step: int
    total: Tensor
    generator: Tensor
    seconds: float


class Stateful(Protocol):
    """What can be saved and can go on: networks in training, told apart by their places."""

    def state(self, index: int) -> dict[str, Any]:
        """Of one network, its optimizer and its schedule."""
        ...

    def restore(self, index: int, state: dict[str, Any]) -> None:
        """Go on from what ``state`` gave."""
        ...


class Progress:
    """One run's way from its last checkpoint to its end.

    Attributes:
        history: the metrics of every whole epoch.
    """

    def __init__(self, run: Run, learner: Stateful, index: int = 0, together: int = 1) -> None:
        """Begin where the run is.

        Args:
            run: where checkpoints and metrics go.
            learner: trains it.
            index: of the run's network among those that the learner trains together.
            together: how many those are; they share the time.
        """
        self.history: list[dict[str, float]] = []
        self._run, self._learner, self._index, self._together = run, learner, index, together
        self._device = torch.device("cpu")
        self._part: PartialEpoch | None = None
        self._at: tuple[int, Tensor, torch.Generator] | None = None
        self._started = 0.0
        self._saved, self._cost = time.monotonic(), 0.0

    def restore(self, device: torch.device) -> None:
        """Go back to the last checkpoint, or to the start of a run that has none.

        Args:
            device: whose random numbers are saved beside those of the CPU.
        """
        self._device = device
        checkpoint = self._run.load_checkpoint()
        if checkpoint is None:
            torch.manual_seed(self._run.seed)  # dropout's random numbers, whatever was drawn before
        else:
            self._learner.restore(self._index, checkpoint)
            _set_rng_state(checkpoint["rng"], self._device)
            self.history = checkpoint["history"]
            self._part = PartialEpoch(**checkpoint["part"]) if checkpoint.get("part") else None
        self._run.write_metrics(self.history)  # it may tell of epochs after the checkpoint, or end in half a line

    def begin_epoch(self) -> PartialEpoch | None:
        """The part of the next epoch that is trained already, if any."""
        part, self._part, self._at = self._part, None, None
        self._started = time.perf_counter() - (part.seconds if part else 0.0) * self._together
        return part

    def seconds(self) -> float:
        """Spent on this epoch so far, also before an interruption: this run's share of the time."""
        return (time.perf_counter() - self._started) / self._together

    def note_step(self, step: int, total: Tensor, generator: torch.Generator) -> None:
        """Note where the epoch stands after a step."""
        self._at = step, total, generator

    def save_if_due(self) -> None:
        """Save on notice or after long, between two steps or two batches of an evaluation."""
        if stop_signal.pending() or time.monotonic() - self._saved > max(
            SAVE_INTERVAL_S, self._cost / MAX_CHECKPOINT_SHARE
        ):
            self.save()

    def save(self) -> None:
        """Save where the epoch stands; what diverges is left at its last good checkpoint."""
        if self._at is not None and self._at[1].isfinite().all():
            self._save(self._at)

    def end_epoch(self, metrics: dict[str, float], last: bool) -> None:
        """Add a whole epoch; save it if it is the last, or if the time since the last checkpoint allows for another."""
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
