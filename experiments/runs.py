"""The run store: one folder per run, every write atomic, a finished run never run again.

A folder ``<variant>-seed<seed>-<hash>`` holds ``config.json``, ``metrics.jsonl`` (one line per epoch),
``checkpoint.pt``, ``result.json`` (written last: its presence means the run has ended) and what was measured. The hash
is over everything that decides the outcome (data content, views, model, recipe, seed): a run whose configuration
changed is another run.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import torch


def config_hash(config: dict[str, Any]) -> str:
    """Eight hex digits over a configuration, independent of key order."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]


def file_name(variant: str) -> str:
    """A variant's name as part of a file name."""
    return re.sub(r"[^\w.=,-]+", "_", variant)[:80]


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all: beside it first, then moved into its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(fresh, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except BaseException as error:
        fresh.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk is told with the place
        raise


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically."""
    text = json.dumps(value, indent=1) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))


@dataclass(frozen=True)
class Run:
    """One variant with one seed, and its folder.

    Attributes:
        variant: name of the variant in its study.
        config: everything that decides the outcome, JSON types only.
        folder: where it lives.
    """

    variant: str
    config: dict[str, Any]
    folder: Path

    @classmethod
    def of(cls, study_folder: Path, variant: str, config: dict[str, Any]) -> Run:
        """The run of a configuration; nothing is written yet."""
        name = f"{file_name(variant)}-seed{config['seed']}-{config_hash(config)}"
        return cls(variant, config, study_folder / name)

    @property
    def seed(self) -> int:
        """The training seed."""
        return self.config["seed"]

    @property
    def result(self) -> dict[str, Any] | None:
        """What ``finish`` wrote, or None while the run has not ended."""
        path = self.folder / "result.json"
        return json.loads(path.read_text()) if path.is_file() else None

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Hold the run for this process; yields False if another process holds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
            else:
                yield True

    def begin(self) -> None:
        """Record the configuration."""
        write_json(self.folder / "config.json", {"variant": self.variant, **self.config})

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Save what training needs to go on: after every epoch the loss of which was finite."""
        buffer = io.BytesIO()  # torch's own writer turns a full disk into an unrelated error
        torch.save(state, buffer)
        write_atomic(self.folder / "checkpoint.pt", lambda file: file.write(buffer.getbuffer()))

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint on the CPU, or None; tensors and plain values only (``weights_only=True``)."""
        path = self.folder / "checkpoint.pt"
        return torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else None

    def write_metrics(self, epochs: list[dict[str, float]]) -> None:
        """Write the history so far, one JSON object per line."""
        lines = "".join(json.dumps(epoch) + "\n" for epoch in epochs)
        write_atomic(self.folder / "metrics.jsonl", lambda file: file.write(lines.encode()))

    def metrics(self) -> list[dict[str, float]]:
        """The history, one entry per epoch."""
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def finish(self, status: str, values: dict[str, Any], device: str) -> dict[str, Any]:
        """Record how the run ended (``done`` or ``diverged``), with provenance; returns the record."""
        hashes = {"config_hash": config_hash(self.config), "data_hash": self.config["data"]}
        result = {"status": status, "seed": self.seed, **values, **hashes, **provenance(device)}
        write_json(self.folder / "result.json", result)
        return result


@lru_cache(maxsize=1)
def _commit() -> str | None:
    try:
        here = Path(__file__).parent
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
        return commit.stdout.strip() + ("+changes" if changed.stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None  # not a git checkout


def provenance(device: str) -> dict[str, Any]:
    """Where and with what a result came about."""
    return {
        "commit": _commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "torchvision", "numpy")},
    }
