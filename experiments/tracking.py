"""wandb, where it is wanted and works; it can never stop a training.

``auto`` is online where somebody is logged in, else offline; our own metrics file is written beside it in any case.
"""

from __future__ import annotations

import importlib
import netrc
import os
import sys
import threading
from pathlib import Path
from typing import Any, Literal

PATIENCE = 60  # seconds
WandbMode = Literal["auto", "online", "offline", "off"]


class Tracker:
    """One wandb run, or nothing: every failure is told once and ends the tracking, not the training."""

    def __init__(
        self, mode: WandbMode, project: str, name: str, group: str, config: dict[str, Any], folder: Path
    ) -> None:
        self._run: Any = None
        if mode == "off":
            return
        try:
            wandb = importlib.import_module("wandb")
            self._run = wandb.init(
                mode=_automatic() if mode == "auto" else mode,
                project=project,
                name=name,
                group=group,
                config=config,
                dir=str(folder),
                settings=wandb.Settings(silent=True, init_timeout=30, x_disable_stats=True, console="off"),
            )
        except ImportError:
            if mode != "auto":
                _warn("wandb is not installed: metrics go to metrics.jsonl alone")
        except Exception as error:
            _warn(f"wandb could not start ({_line(error)}): metrics go to metrics.jsonl alone")

    def log(self, metrics: dict[str, float]) -> None:
        """Send the metrics of one epoch."""
        if self._run is not None:
            try:
                self._run.log(metrics)
            except Exception as error:
                self._drop(error)

    def finish(self, summary: dict[str, Any], failed: bool = False) -> None:
        """Send the final values and close."""
        if self._run is None:
            return

        def close() -> None:
            try:
                self._run.summary.update(summary)
                self._run.finish(exit_code=int(failed))
            except Exception as error:
                self._drop(error)

        # An upload over a lost network can take forever; the next run does not wait for it.
        closing = threading.Thread(target=close, daemon=True)
        closing.start()
        closing.join(PATIENCE)
        if closing.is_alive():
            _warn(f"wandb did not finish within {PATIENCE} s: `wandb sync` sends the rest later")

    def _drop(self, error: Exception) -> None:
        self._run = None
        _warn(f"wandb stopped ({_line(error)}): metrics go on to metrics.jsonl")


def _automatic() -> str:
    """What ``auto`` means here: what WANDB_MODE says, else online where somebody is logged in."""
    return os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
