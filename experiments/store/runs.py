"""The run store: one folder per run, every write atomic, a finished run never run again.

A folder ``<variant>-seed<seed>-<hash>`` holds ``config.json``, ``kernels.csv`` (by which its kernels are chosen),
``metrics.jsonl`` (one line per epoch), ``checkpoint.pt`` (and, until the run has ended, the one before it),
``result.json`` (written last: its presence means the run has ended), or ``failure.json`` (the reason why the last try
failed), and tables of measures. The hash covers everything that decides the outcome (data content, views, model,
recipe, seed): a run whose configuration changed is another run.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

from experiments.errors import RunFailedError, UsageError
from experiments.store import checkpoint_file
from experiments.store.leases import Lease, LeaseLostError, claim

UNCOMMITTED = " with uncommitted changes"


def config_hash(config: dict[str, Any]) -> str:
    """Return eight hex digits: a hash of a configuration, independent of key order."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]


def file_name(variant: str) -> str:
    """Return a variant's name as part of a file name."""
    return re.sub(r"[^\w.=,-]+", "_", variant)[:80]


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file whole or not at all: under another name first, which is then changed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")  # several machines may share the folder
    try:
        with open(fresh, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except BaseException as error:
        fresh.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk is reported with the file
        raise


def check_writable(folder: Path, flag: str) -> None:
    """Check that a folder can be written to, or created; no file is left in it.

    Raises:
        UsageError: it cannot; names the flag that gave it.
    """
    whole = folder.absolute()
    nearest = next(place for place in (whole, *whole.parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        reason = "is a file" if nearest.is_file() else f"cannot be written to: {error.strerror}"
        raise UsageError(f"{flag}={folder}: {nearest} {reason}") from None


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
        folder: folder of its files.
        lease: by which this process holds it; after it was lost, no file is written.
    """

    variant: str
    config: dict[str, Any]
    folder: Path
    lease: Lease | None = field(default=None, compare=False)

    @classmethod
    def of(cls, study_folder: Path, variant: str, config: dict[str, Any]) -> Run:
        """Return the run of a configuration; nothing is written yet."""
        name = f"{file_name(variant)}-seed{config['seed']}-{config_hash(config)}"
        return cls(variant, config, study_folder / name)

    @property
    def seed(self) -> int:
        """Training seed."""
        return self.config["seed"]

    @property
    def result(self) -> dict[str, Any] | None:
        """Record that ``finish`` wrote, or None while the run has not ended."""
        return _read_json(self.folder / "result.json", _keys_of_result)

    @property
    def failure(self) -> dict[str, Any] | None:
        """Record that ``fail`` wrote, or None: the reason why the last try did not come to an end."""
        return _read_json(self.folder / "failure.json", lambda _: ("reason",))

    @contextmanager
    def lock(self) -> Iterator[Lease | None]:
        """Hold the run for this process; yields None if another process holds it."""
        lease = claim(self.folder)
        try:
            yield lease
        finally:
            if lease is not None:
                lease.release(remove=self.result is not None)

    def begin(self) -> None:
        """Record the configuration, and remove the unfinished files of a killed process."""
        self._check()
        for half in self.folder.glob(".*.*"):
            if half.is_file():
                half.unlink(missing_ok=True)
        (self.folder / "failure.json").unlink(missing_ok=True)
        write_json(self.folder / "config.json", {"variant": self.variant, **self.config})

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Save the state of the training; the checkpoint before is kept in case this one is damaged."""
        self._check()
        newest, previous = self._checkpoints()
        fresh = self.folder / "checkpoint-next.pt"
        write_atomic(fresh, lambda file: file.write(checkpoint_file.to_bytes(state)))
        if newest.is_file():
            os.replace(newest, previous)
        os.replace(fresh, newest)

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Return the last checkpoint that is whole, on the CPU, or None; a damaged one is reported and passed over."""
        damaged, state, used = [], None, "there is no other"
        for path in self._checkpoints():
            try:
                state, used = checkpoint_file.load(path), f"{path.name} is used"
                break
            except FileNotFoundError:
                continue
            except checkpoint_file.DamagedError as error:
                damaged.append(f"{path} is damaged: {error}")
        if damaged:
            print(f"warning: {'; '.join(damaged)}; {used}", file=sys.stderr, flush=True)
        return state

    def epochs_saved(self) -> int:
        """Return the number of whole epochs in the last checkpoint."""
        return len((self.load_checkpoint() or {}).get("history", []))

    def _checkpoints(self) -> tuple[Path, Path]:
        return self.folder / "checkpoint.pt", self.folder / "checkpoint-previous.pt"

    def write_metrics(self, epochs: list[dict[str, float]]) -> None:
        """Write the history anew, one JSON object per line: as a checkpoint has it."""
        self._check()
        lines = "".join(json.dumps(epoch) + "\n" for epoch in epochs)
        write_atomic(self.folder / "metrics.jsonl", lambda file: file.write(lines.encode()))

    def add_metrics(self, epoch: dict[str, float]) -> None:
        """Append one epoch; the history in the checkpoint counts, so that nothing waits for the disk here."""
        self._check()
        path = self.folder / "metrics.jsonl"
        try:
            with open(path, "ab", buffering=0) as file:
                line = (json.dumps(epoch) + "\n").encode()
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            error.filename = error.filename or str(path)
            raise

    def metrics(self) -> list[dict[str, float]]:
        """Return the history, one entry per epoch; where it is damaged or incomplete, that of the checkpoint."""
        path = self.folder / "metrics.jsonl"
        epochs, damaged = [], False
        for line in path.read_bytes().splitlines() if path.is_file() else []:
            try:
                epochs.append(json.loads(line))
            except ValueError:
                damaged = True
        short = (self.folder / "result.json").is_file() and len(epochs) < self.config["recipe"]["epochs"]
        if damaged or (short and (self.result or {}).get("status") == "done"):
            what = "has a damaged line" if damaged else "is incomplete" if epochs else "is gone"
            print(f"warning: {path} {what}; the checkpoint's history counts", file=sys.stderr, flush=True)
            kept = (self.load_checkpoint() or {}).get("history", [])
            epochs = max(epochs, kept, key=len)
        return epochs

    def finish(self, status: str, values: dict[str, Any], device: str) -> dict[str, Any]:
        """Record how the run ended (``done`` or ``diverged``), with provenance; returns the record."""
        self._check()
        hashes = {"config_hash": config_hash(self.config), "data_hash": self.config["data"]}
        result = {"status": status, "seed": self.seed, **values, **hashes, **provenance(device)}
        self._checkpoints()[1].unlink(missing_ok=True)
        write_json(self.folder / "result.json", result)
        return result

    def fail(self, error: Exception, epoch: int) -> dict[str, Any]:
        """Record why the run did not come to an end this time, where that can be written; returns the record.

        The next start tries the run again.
        """
        text = " ".join(str(error).split())
        if not isinstance(error, RunFailedError | UsageError):  # an unexpected error
            text = f"{type(error).__name__}: {text}"
        record = {"status": "failed", "reason": text, "epoch": epoch, "seed": self.seed}
        try:
            self._check()
            trace = "".join(traceback.format_exception(error))
            by = {"host": socket.gethostname(), "pid": os.getpid(), "date": _now(), "traceback": trace}
            write_json(self.folder / "failure.json", {**record, **by})
        except (OSError, LeaseLostError):
            pass
        return record

    def _check(self) -> None:
        if self.lease is not None:
            self.lease.check()


def public(values: dict[str, Any]) -> dict[str, Any]:
    """Return the same values without paths of this machine; the data's hash identifies their content."""
    return {k: "folder:PATH" if k == "dataset" and str(v).startswith("folder:") else v for k, v in values.items()}


def _keys_of_result(result: dict[str, Any]) -> tuple[str, ...]:
    """Return the keys that nothing can go without: those of a run that is done, or the reason why it is not."""
    return ("status", "test_accuracy", "seconds") if result.get("status") == "done" else ("status", "reason")


def _read_json(path: Path, needed: Callable[[dict[str, Any]], tuple[str, ...]]) -> dict[str, Any] | None:
    """Return a mapping from a JSON file; None if there is no file, or, with a warning, if a needed key is missing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        content = None
    if isinstance(content, dict) and all(key in content for key in needed(content)):
        return content
    print(f"warning: {path} is damaged and counts as missing", file=sys.stderr, flush=True)
    return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@lru_cache(maxsize=1)
def _commit() -> str | None:
    """Return the commit of this checkout and, if so, that files differ from it; None outside of a checkout."""
    try:
        here = Path(__file__).parent
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
        return commit.stdout.strip() + (UNCOMMITTED if changed.stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def short_commit(commit: str) -> str:
    """Return the commit of a result with ten digits; older results have ``+changes`` for uncommitted changes."""
    return commit[:10] + (UNCOMMITTED if commit.endswith((UNCOMMITTED, "+changes")) else "")


def provenance(device: str) -> dict[str, Any]:
    """Return the versions, the device and the time, for the record of a result."""
    return {
        "commit": _commit(),
        "date": _now(),
        "device": device,
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "torchvision", "numpy")},
    }
