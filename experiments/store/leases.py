"""Leases: the process that holds a folder, agreed on through files in the folder alone.

Processes on one machine, or on several that share a file system, divide a study by leasing its runs. A lease is a file
``lease-<n>.json`` of which the highest number counts. Who wants the folder creates the next number, which a file system
grants to exactly one (``O_EXCL``). Only then it removes the lower numbers, so the highest one stays. A process with an
old view may create a number that was removed: so it lists the folder again, and gives up if a higher number is there.

A holder shows its heartbeat by counting up in its file. A lease is free again when it was given back, when its process
is known to be dead (same machine), or when its count has stood still for ``EXPIRY_S`` seconds of the watcher's own
monotonic clock: no two clocks are compared, and a clock set back changes nothing. A holder that was stalled for so long
learns from ``Lease.check``, before it writes, that it no longer holds the folder.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

HEARTBEAT_INTERVAL_S = 5.0
EXPIRY_S = 60.0  # without a heartbeat
LEASE_BYTES = 512  # constant, so that a lease file can be written in place


class LeaseLostError(Exception):
    """Another process took a lease over because this one had no heartbeat."""


@dataclass(frozen=True)
class Holder:
    """Content of a lease file.

    Attributes:
        host, pid: where the process is, for people.
        machine: the booted system and the space in which ``pid`` counts.
        born: when the process started, in ticks of its machine, since process numbers are used again; 0 if unknown.
        since: when the lease was taken, by the holder's clock (ISO 8601); for people.
        beat: number of heartbeats.
        released: True if the lease was given back.
    """

    host: str
    pid: int
    machine: str
    born: int
    since: str
    beat: int = 0
    released: bool = False

    def alive(self) -> bool | None:
        """Tell if the process runs; None if it is on another machine, where this cannot be checked."""
        if self.machine != machine():
            return None
        born = _start_ticks(self.pid)
        return born is not None and born == self.born

    def line(self) -> bytes:
        """Return the content as a line of the file."""
        return json.dumps(asdict(self)).encode().ljust(LEASE_BYTES - 1) + b"\n"


class Lease:
    """A lease held by this process, with its heartbeat."""

    def __init__(self, path: Path, holder: Holder) -> None:
        self.path = path
        self._holder = holder
        self._lost = False
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, daemon=True)
        self._heart.start()

    def check(self) -> None:
        """Make sure that the lease is still held, before something is written.

        Raises:
            LeaseLostError: another process has taken it over.
        """
        folder = self.path.parent
        if self._lost or not _is_highest(self.path):
            self._lost = True
            raise LeaseLostError(f"{folder}: this process stood still for long, and another one has taken the run over")

    def release(self, remove: bool = False) -> None:
        """Give the lease back.

        Args:
            remove: delete the lease; only if another file in the folder keeps all processes away from it.
        """
        self._ended.set()
        self._heart.join()
        try:
            if remove:
                self.path.unlink(missing_ok=True)
            else:
                _rewrite(self.path, replace(self._holder, released=True))
        except OSError:
            pass  # a full or lost disk: the others will find this process gone

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_INTERVAL_S):
            self._holder = replace(self._holder, beat=self._holder.beat + 1)
            try:
                _rewrite(self.path, self._holder)
            except FileNotFoundError:  # who took over has removed it
                self._lost = True
                return
            except OSError:
                continue  # a network share may come back


def claim(folder: Path) -> Lease | None:
    """Take the lease of a folder, or None while another process holds it. The folder is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    old = _leases(folder)
    if old and not _is_free(old[-1]):
        return None
    path = _path(folder, _number(old[-1]) + 1 if old else 1)
    pid = os.getpid()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    holder = Holder(socket.gethostname(), pid, machine(), _start_ticks(pid) or 0, now)
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return None  # another process was quicker
    try:
        os.write(descriptor, holder.line())
    except OSError as error:
        path.unlink(missing_ok=True)
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)
    if not _is_highest(path):  # others have claimed the folder since it was listed
        path.unlink(missing_ok=True)
        return None
    for stale in old:
        stale.unlink(missing_ok=True)
    return Lease(path, holder)


@contextmanager
def wait_for_lease(folder: Path, poll: float = 1.0) -> Iterator[Lease]:
    """Wait until the lease of a folder is free, and hold it."""
    while (lease := claim(folder)) is None:
        time.sleep(poll)
    try:
        yield lease
    finally:
        lease.release()


def holder(folder: Path) -> Holder | None:
    """Return the holder of a folder, or None; a holder on another machine may be dead."""
    leases = _leases(folder)
    current = _read(leases[-1])[1] if leases else None
    return None if current is None or current.released or current.alive() is False else current


def last_heartbeat(folder: Path) -> float:
    """Return the time of the last heartbeat of a folder's holder, by the clock of the disk."""
    leases = _leases(folder)
    return leases[-1].stat().st_mtime if leases else 0.0


def _path(folder: Path, number: int) -> Path:
    return folder / f"lease-{number}.json"


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("lease-"))


def _leases(folder: Path) -> list[Path]:
    """Return the lease files of a folder, the valid one last."""
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted((folder / name for name in names if re.fullmatch(r"lease-[0-9]+\.json", name)), key=_number)


def _is_highest(path: Path) -> bool:
    """Tell if a lease is there and no other of its folder has a higher number."""
    return _leases(path.parent)[-1:] == [path]


def _read(path: Path) -> tuple[bytes, Holder | None]:
    """Return the bytes of a lease file and their content, None where it cannot be read, or not yet."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return b"", None
    try:
        return content, Holder(**json.loads(content))
    except (ValueError, TypeError):
        return content, None


def _rewrite(path: Path, holder: Holder) -> None:
    """Write a lease file in place; never anew, since one that was removed must not come back."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(descriptor, holder.line(), 0)
    finally:
        os.close(descriptor)


_seen: dict[Path, tuple[bytes, float]] = {}  # other processes' leases as last read, and since when


def _is_free(path: Path) -> bool:
    content, current = _read(path)
    if current is not None and (current.released or current.alive() is False):
        return True
    now = time.monotonic()
    before, since = _seen.get(path, (None, now))
    if content != before:
        since = now
    _seen[path] = content, since
    return now - since > EXPIRY_S


@cache
def machine() -> str:
    """Return an id of the booted system and of the process namespace, which differs between containers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _start_ticks(pid: int) -> int | None:
    """Return when a process of this machine started, in ticks; None if it is dead, 0 where that cannot be read."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return None if state in "ZX" else int(fields[18])
    except OSError:
        if os.path.isdir("/proc/self"):
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return 0
