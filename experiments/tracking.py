"""Tracking by wandb, which never stops a training.

``auto`` is online where somebody is logged in, otherwise offline; ``metrics.jsonl`` is written in any case. A server
that is gone, slow or refuses the key costs one line and at most ``FINISH_TIMEOUT_S`` seconds: what could not be sent is
kept in ``wandb/``, and ``wandb sync`` sends it later.
"""

from __future__ import annotations

import hashlib
import importlib
import netrc
import os
import sys
import threading
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from experiments.errors import UsageError

PROJECT = "grouped-convolution"
START_TIMEOUT_S = 20  # for the server to answer; after it a run is kept offline
FINISH_TIMEOUT_S = 60  # for the last uploads of a run
OLD_MODES = {"dryrun": "offline", "run": "online"}  # names of modes in older versions of wandb
SYNC_HINT = "`wandb sync` sends it later"
WandbMode = Literal["auto", "online", "offline", "off"]

_listeners: list[Callable[[dict[str, float]], None]] = []
_kept_offline = threading.Event()  # set once the server has failed: no later run of this process waits for it again


@contextmanager
def listening(listener: Callable[[dict[str, float]], None]) -> Iterator[None]:
    """Call a function with the metrics of every epoch of this process's runs, after they are saved.

    An exception that it raises ends the run: a sweep stops a run early in this way.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def called_by_agent() -> bool:
    """Tell if a wandb agent started this process, for one run of a sweep."""
    return bool(os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID"))


class Tracker:
    """One wandb run, or none: a failure is reported in one line and ends the tracking, not the training."""

    def __init__(
        self,
        mode: WandbMode,
        project: str,
        name: str,
        group: str,
        config: dict[str, Any],
        folder: Path,
        kind: str = "training",
        identity: str | None = None,
    ) -> None:
        """Begin a run.

        Args:
            mode: online, offline, off, or auto.
            project, name, group: as wandb shows them; under an agent, project and group are the agent's.
            config: configuration of the run.
            folder: folder of wandb's files.
            kind: wandb's job type.
            identity: wandb's id of the run, where it must be the same each time.
        """
        self._run: Any = None
        self._given_up = False
        self._online = False
        if mode == "off":
            return
        wanted = _automatic() if mode == "auto" else mode
        if wanted == "disabled":  # by WANDB_MODE or `wandb disabled`: nothing is kept, so nothing may count as sent
            return
        if wanted == "online" and _kept_offline.is_set():
            wanted = "offline"
        started: dict[str, Any] = {"project": project, "name": name, "group": group, "config": config}
        started |= {"dir": str(folder), "job_type": kind}
        if called_by_agent():
            del started["project"], started["group"]
        elif identity is not None:
            started |= {"id": identity, "resume": "allow" if wanted == "online" else None}
        try:
            wandb = importlib.import_module("wandb")
            self._run = self._begin(wandb, wanted, started)
            for metrics, axis in (("train_*", "epoch"), ("test_*", "epoch"), ("lr", "epoch"), ("step_*", "step")):
                self._run.define_metric(metrics, step_metric=axis)
        except ImportError:
            if mode != "auto":
                _warn("wandb is not installed: metrics go to metrics.jsonl alone")
        except Exception as error:
            self._run = None
            _warn(f"wandb could not start ({_line(error)}): metrics go to metrics.jsonl alone")

    def _begin(self, wandb: Any, wanted: str, started: dict[str, Any]) -> Any:
        """Return the wandb run, which is kept offline where the server does not take it."""

        def begin(mode: str) -> Any:
            settings = wandb.Settings(
                silent=True, init_timeout=START_TIMEOUT_S, x_disable_stats=True, console="off", reinit="create_new"
            )
            return wandb.init(mode=mode, settings=settings, **started)

        wandb.setup(settings=wandb.Settings(silent=True))
        if wanted != "online":
            return begin(wanted)
        try:
            run = begin("online")
            self._online = True
            return run
        except Exception as error:
            _kept_offline.set()
            started.pop("resume", None)
            run = begin("offline")
            _warn(f"wandb's server did not take the run ({_line(error)}): kept offline, {SYNC_HINT}")
            return run

    @property
    def on(self) -> bool:
        """True while there is a wandb run."""
        return self._run is not None

    def log(self, metrics: dict[str, float]) -> None:
        """Send the metrics of one epoch, and call the functions of ``listening``."""
        for listener in _listeners:
            listener(metrics)
        self._try(lambda run: run.log(metrics))

    def log_step(self, step: int, metrics: dict[str, float]) -> None:
        """Send metrics of the steps since the last call; wandb draws them against the step.

        Args:
            step: steps of the run so far.
            metrics: such as loss and rate; their names get the prefix ``step_``.
        """
        if self._run is not None:
            sent = {"step": step, **{f"step_{name}": value for name, value in metrics.items()}}
            self._try(lambda run: run.log(sent))

    def show(self, tables: dict[str, Path], figures: dict[str, Path]) -> None:
        """Send result tables (CSV) and figures (PNG) by name."""

        def send(run: Any) -> None:
            import pandas as pd

            wandb = importlib.import_module("wandb")
            media: dict[str, Any] = {}
            for name, path in tables.items():
                table = pd.read_csv(path, keep_default_na=False, dtype=str)
                media[f"tables/{name}"] = wandb.Table(columns=list(table), data=_values(table))
            for name, path in figures.items():
                media[f"figures/{name}"] = wandb.Image(str(path))
            run.log(media)

        self._try(send)

    def finish(self, summary: dict[str, Any], failed: bool = False) -> None:
        """Send the final values and close."""
        if self._run is None:
            return

        def close() -> None:
            try:
                self._run.summary.update(summary)
                self._run.finish(exit_code=int(failed))
            except BaseException as error:  # also what wandb raises when the process ends before the upload
                if not self._given_up:
                    self._drop(error)

        # An upload over a lost network can take forever; the next run does not wait for it.
        closing = threading.Thread(target=close, daemon=True)
        closing.start()
        closing.join(FINISH_TIMEOUT_S)
        if closing.is_alive():
            self._given_up = True
            _kept_offline.set()
            _warn(f"wandb did not finish within {FINISH_TIMEOUT_S} s: the run is kept, {SYNC_HINT}")

    def _try(self, send: Callable[[Any], object]) -> None:
        if self._run is not None:
            try:
                send(self._run)
            except Exception as error:
                self._drop(error)

    def _drop(self, error: BaseException) -> None:
        self._run = None
        _warn(f"wandb stopped ({_line(error)}): metrics go on to metrics.jsonl")


def log_results(
    mode: WandbMode, study: str, folder: Path, tables: list[Path], figures: list[Path], config: dict[str, Any]
) -> None:
    """Send the tables and figures of a study, or of a sweep, as a wandb run of its own.

    The same results are sent once; results that were kept offline do not count as sent.

    Args:
        mode: online, offline, off, or auto.
        study: its name; the run is called ``<study> results``.
        folder: folder of the study.
        tables, figures: files that exist; CSVs and PNGs are sent.
        config: the question, the overrides, the provenance.
    """
    if mode == "off" or called_by_agent():
        return
    tables = [path for path in tables if path.suffix == ".csv" and path.stat().st_size > 1]
    digest = hashlib.sha256(study.encode())
    for path in tables:
        digest.update(path.read_bytes())
    identity, notes = digest.hexdigest()[:12], folder / "wandb"
    done = [notes / "results-sent"] if online(mode) else [notes / "results-sent", notes / "results-kept"]
    if any(note.is_file() and note.read_text(encoding="utf-8", errors="replace") == identity for note in done):
        return
    name = f"{study} results"
    tracker = Tracker(mode, PROJECT, name, study, config, folder, kind="results", identity=identity)
    if not tracker.on:
        return
    images = {path.stem: path for path in figures if path.suffix == ".png"}
    tracker.show({path.stem: path for path in tables}, images)
    tracker.finish({"tables": len(tables), "figures": len(images)})
    if tracker.on and not tracker._given_up:
        notes.mkdir(parents=True, exist_ok=True)
        (notes / ("results-sent" if tracker._online else "results-kept")).write_text(identity, encoding="utf-8")


def online(mode: WandbMode) -> bool:
    """Tell if a run of this mode is sent to a server."""
    return (_automatic() if mode == "auto" else mode) == "online"


def _values(table: Any) -> list[list[Any]]:
    """Return the cells of a table of texts; columns of numbers become numbers, which a workspace can plot."""
    import pandas as pd

    columns: list[list[Any]] = []
    for name in table:
        texts = table[name].to_list()
        numbers = pd.to_numeric(table[name].replace("", None), errors="coerce").to_list()
        plottable = any(n == n for n in numbers) and all(n == n or t == "" for n, t in zip(numbers, texts, strict=True))
        columns.append([None if n != n else float(n) for n in numbers] if plottable else texts)
    return [list(row) for row in zip(*columns, strict=True)]


def _automatic() -> str:
    """Return the mode of ``auto``: WANDB_MODE or wandb's settings, otherwise online where somebody is logged in."""
    mode = os.environ.get("WANDB_MODE") or _mode_in_settings()
    return OLD_MODES.get(mode, mode) or ("online" if _logged_in() else "offline")


def _mode_in_settings() -> str:
    """Return ``disabled`` or ``offline`` if the command ``wandb disabled`` or ``wandb offline`` was given, else ''."""
    home = Path(os.environ.get("WANDB_CONFIG_DIR", "~/.config/wandb")).expanduser()
    here = Path(os.environ.get("WANDB_DIR", ".")).expanduser()
    files = ConfigParser(interpolation=None)
    for path in (home, here / ".wandb" if (here / ".wandb").is_dir() else here / "wandb"):
        try:
            files.read(path / "settings", encoding="utf-8")
        except (ConfigParserError, UnicodeDecodeError):  # wandb itself reports it
            continue
    mode = files.get("default", "mode", fallback="")
    return mode if OLD_MODES.get(mode, mode) in ("disabled", "offline") else ""


def check_account(mode: WandbMode) -> None:
    """Check that somebody is logged in if metrics are to be sent.

    Raises:
        UsageError: nobody is logged in.
    """
    if mode == "online" and not (called_by_agent() or _logged_in()):
        raise UsageError("wandb=online: nobody is logged in to wandb here; `wandb login` does, or leave --wandb out")


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    server = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or "api.wandb.ai"
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(server) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
