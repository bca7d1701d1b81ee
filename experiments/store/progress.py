"""How far a run has come: saved so that it goes on to the same bits, and no more often than it can afford.

The checkpoint is the only truth; ``metrics.jsonl`` follows it, and is written anew from it when a run goes on.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.store import notice
from experiments.store.runs import Run

SHARE = 0.02  # of the time, that checkpoints may take
LONG = 300.0  # seconds of an epoch after which its part is saved


@dataclass(frozen=True)
class Part:
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


class Progress:
    """One run's way from its last checkpoint to its end.

    Attributes:
        history: the metrics of every whole epoch.
    """

    def __init__(self, run: Run, model: nn.Module, optimizer: torch.optim.SGD, schedule: Any) -> None:
        self.history: list[dict[str, float]] = []
        self._run, self._model, self._optimizer, self._schedule = run, model, optimizer, schedule
        self._device = next(model.parameters()).device
        self._part: Part | None = None
        self._at: tuple[int, Tensor, torch.Generator] | None = None
        self._started = 0.0
        self._saved, self._cost = time.monotonic(), 0.0

    def restore(self) -> None:
        """Go back to the last checkpoint, or to the start of a run that has none."""
        checkpoint = self._run.load_checkpoint()
        if checkpoint is None:
            torch.manual_seed(self._run.seed)  # dropout's random numbers, whatever was drawn before
        else:
            self._model.load_state_dict(checkpoint["model"])
            self._optimizer.load_state_dict(checkpoint["optimizer"])
            self._schedule.load_state_dict(checkpoint["schedule"])
            _set_rng_state(checkpoint["rng"], self._device)
            self.history = checkpoint["history"]
            self._part = Part(**checkpoint["part"]) if checkpoint.get("part") else None
        self._run.write_metrics(self.history)  # it may tell of epochs after the checkpoint, or end in half a line

    def begin_epoch(self) -> Part | None:
        """The part of the next epoch that is trained already, if any."""
        part, self._part, self._at = self._part, None, None
        self._started = time.perf_counter() - (part.seconds if part else 0.0)
        return part

    def seconds(self) -> float:
        """Spent on this epoch so far, also before an interruption."""
        return time.perf_counter() - self._started

    def after_step(self, step: int, total: Tensor, generator: torch.Generator) -> None:
        """Note where the epoch stands after a step; save it on notice, or where the epoch is long.

        Raises:
            KeyboardInterrupt: a notice to stop has come, and what is trained is saved.
        """
        self._at = step, total, generator
        self.look_out()

    def look_out(self) -> None:
        """Save on notice or after long, between two steps or two batches of an evaluation; raises as ``after_step``."""
        if notice.given() or time.monotonic() - self._saved > max(LONG, self._cost / SHARE):
            if (
                self._at is not None and self._at[1].isfinite().all()
            ):  # what diverges is left at its last good checkpoint
                self._save(self._at)
            notice.heed()

    def end_epoch(self, metrics: dict[str, float], last: bool) -> None:
        """Add a whole epoch; save it if it is the last, or if the time since the last checkpoint allows for another."""
        self.history.append(metrics)
        self._at = None
        if last or time.monotonic() - self._saved >= self._cost / SHARE:
            self._save(None)
        self._run.add_metrics(metrics)

    def _save(self, at: tuple[int, Tensor, torch.Generator] | None) -> None:
        start = time.monotonic()
        part = asdict(Part(at[0], at[1].cpu(), at[2].get_state(), self.seconds())) if at else None
        self._run.save_checkpoint(
            {
                "model": self._model.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "schedule": self._schedule.state_dict(),
                "rng": _rng_state(self._device),
                "history": self.history,
                "part": part,
            }
        )
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
