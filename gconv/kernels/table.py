"""Tables of measured times: seconds of each kernel on one kind of layer, on one machine.

The first line of a table names the machine: device, family of instructions, torch, threads. Tables are shipped in
``tables/``, one per family and number of threads, and are valid for all devices of the family. Measurements on a user's
own machine go to a file in the cache folder, one per machine, which has priority. If that file cannot be written, they
are kept in memory for this process. All tables are plain text, one row per kind of layer and kernel.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, fields, replace
from functools import cache
from pathlib import Path
from threading import RLock
from typing import Any

import torch

from gconv.kernels.geometry import Geometry
from gconv.kernels.machine import Machine

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

SHIPPED = Path(__file__).parent / "tables"
FORMAT_LINE = "# gconv kernel table 2"  # with the version of the format
MAX_SIZE_DISTANCE = 2  # greatest distance, in factors of two, of a measured layer whose times are used for another


@dataclass(frozen=True)
class Kind:
    """One kind of layers, which share the rows of a table. Sizes are rounded to powers of two.

    Attributes:
        dtype, layout: ``bfloat16`` and the like; ``channels_last`` or ``contiguous``.
        op: ``conv2d``, ``input_gradient``, ``weight_gradient``, or ``step``: all three, through autograd.
        cut: ``uniform`` or ``uneven``.
        kernel: ``1x1`` or ``KxK``.
        stride: 1, or 2 for any larger one.
        channels: log2 of the layer's channels (geometric mean of inputs and outputs).
        widest, narrowest: log2 of the channels of its widest and its narrowest group.
        groups: log2 of their number.
        pixels: log4 of batch · height · width of the input.
    """

    dtype: str
    layout: str
    op: str
    cut: str
    kernel: str
    stride: int
    channels: int
    widest: int
    narrowest: int
    groups: int
    pixels: int

    @classmethod
    def of(cls, op: str, geometry: Geometry, dtype: torch.dtype, channels_last: bool, pixel_bits: int) -> Kind:
        """Return the kind of one layer."""
        channels = geometry.in_groups.channels * geometry.out_groups.channels
        links = geometry.links
        return cls(
            str(dtype).removeprefix("torch."),
            "channels_last" if channels_last else "contiguous",
            op,
            "uniform" if geometry.is_uniform else "uneven",
            "1x1" if geometry.kernel_size == (1, 1) else "KxK",
            1 if geometry.stride == (1, 1) else 2,
            round(math.log2(channels) / 2),
            round(math.log2(max(links)) / 2),
            round(math.log2(min(links)) / 2),
            round(math.log2(geometry.groups)),
            pixel_bits // 2,
        )

    @property
    def comparable(self) -> tuple:
        """The fields that must be equal for two kinds to be comparable."""
        return self.dtype, self.layout, self.op, self.cut, self.kernel, self.stride  # ``astuple`` is far slower

    @property
    def sizes(self) -> tuple[int, ...]:
        """The fields in which comparable kinds may differ."""
        return self.channels, self.widest, self.narrowest, self.groups, self.pixels

    def distance(self, other: Kind) -> int:
        """Return the distance of two comparable kinds, in factors of two."""
        return sum(abs(a - b) for a, b in zip(self.sizes, other.sizes, strict=True))


Table = dict[Kind, dict[str, float]]  # seconds of each kernel


class TableError(ValueError):
    """A table file that cannot be used; the message is one line."""


def nearest(table: Table, kind: Kind) -> tuple[Kind, int] | None:
    """Return the nearest measured kind and its distance; None if none is near enough."""
    if kind in table:
        return kind, 0
    near = [(kind.distance(other), i, other) for i, other in enumerate(table) if other.comparable == kind.comparable]
    if not near or min(near)[0] > MAX_SIZE_DISTANCE:
        return None
    steps, _, other = min(near)
    return other, steps


def near(table: Table, geometries: Iterable[Geometry]) -> Table:
    """Return the part of a table that applies to some layers, in any dtype, layout and size of input."""
    wanted = [Kind.of("conv2d", geometry, torch.float32, True, 0) for geometry in geometries]

    def is_near(kind: Kind) -> bool:
        alike = [replace(w, dtype=kind.dtype, layout=kind.layout, op=kind.op, pixels=kind.pixels) for w in wanted]
        return any(w.comparable == kind.comparable and w.distance(kind) <= MAX_SIZE_DISTANCE for w in alike)

    return {kind: times for kind, times in table.items() if is_near(kind)}


def shipped_path(machine: Machine) -> Path:
    """Return the path of the shipped table for the family and the number of threads of a machine."""
    return SHIPPED / f"{machine.family}{f'-threads-{machine.threads}' if machine.threads else ''}.csv"


def own_path(machine: Machine) -> Path:
    """Return the path of the user's own table, in ``$XDG_CACHE_HOME/gconv/kernels``, by default under ``~/.cache``."""
    cache_folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = re.sub(r"[^\w.+]+", "-", str(machine)).strip("-")
    return cache_folder / "gconv" / "kernels" / f"{name}.csv"


_pinned: Table | None = None


@contextmanager
def pinned(table: Table) -> Iterator[None]:
    """Use only this table inside the block, in all threads."""
    global _pinned
    before, _pinned = _pinned, table
    try:
        yield
    finally:
        _pinned = before


def is_pinned() -> bool:
    """Return True inside a block of ``pinned``."""
    return _pinned is not None


_lock = RLock()  # held while a table is extended
_unwritten: dict[Path, Table] = {}  # measurements that are not in their file
_failures: dict[Path, str] = {}  # reason why a file cannot be written, in words


def own(machine: Machine) -> Table:
    """Return the user's own table for a machine, with the times that are in memory; empty if there are none."""
    path = own_path(machine)
    try:
        made_on, table = read(path)
    except (TableError, OSError):
        made_on, table = machine, {}
    return _with_unwritten(path, table if made_on == machine else {})


def _with_unwritten(path: Path, table: Table) -> Table:
    """Return a table updated with the measurements that are not in its file; a kind without times is removed."""
    return {kind: times for kind, times in (table | _unwritten.get(path, {})).items() if times}


def write_failure(machine: Machine) -> str:
    """Return the reason why the user's own table could not be written, with its path; empty if it could."""
    return _failures.get(own_path(machine), "")


def load(machine: Machine) -> Table:
    """Return the table for a machine: the shipped one, updated with the user's own.

    A file that cannot be used, or was made on another machine, warns once and is ignored.
    """
    return _load(machine) if _pinned is None else _pinned


@cache
def _load(machine: Machine) -> Table:
    table: Table = {}
    for path in (shipped_path(machine), own_path(machine)):
        try:
            made_on, times = read(path)
            wanted = (machine.family, machine.threads)
            if (made_on.family, made_on.threads) != wanted or (path == own_path(machine) and made_on != machine):
                raise TableError(f"it was made on {made_on}, and this is {machine}")
        except (FileNotFoundError, NotADirectoryError):
            times = {}
        except (TableError, OSError) as error:
            times = {}
            warnings.warn(f"kernel table {path} is ignored: {error}; `make bench-kernels` rebuilds it", stacklevel=2)
        table |= _with_unwritten(path, times)
    return table


def forget() -> None:
    """Read the files again at the next use of a table."""
    _load.cache_clear()


COLUMNS = [*(field.name for field in fields(Kind)), "computed_by", "seconds"]
TEXT_COLUMNS = 5  # columns, from the left
FIRST_LINE = re.compile(
    re.escape(FORMAT_LINE)
    + r"; device (?P<device>.+); family (?P<family>[\w-]+); torch (?P<torch>\S+); threads (?P<threads>\d+)"
)


def read(path: Path) -> tuple[Machine, Table]:
    """Read a table, and the machine that it was measured on.

    Raises:
        TableError: the file is broken or of another format.
        FileNotFoundError: there is none.
    """
    try:
        return parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise TableError("it is no text") from None


def parse(text: str) -> tuple[Machine, Table]:
    """Parse the text of a table file, as ``read`` does."""
    head, _, body = text.partition("\n")
    if not head.startswith(f"{FORMAT_LINE};"):
        raise TableError(f"it begins with {head[:40]!r}, not with {FORMAT_LINE!r}")
    named = FIRST_LINE.fullmatch(head)
    if named is None:
        raise TableError(f"its first line does not name device, family, torch and threads: {head!r}")
    machine = Machine(named["device"], named["family"], named["torch"], int(named["threads"]))
    rows = csv.DictReader(io.StringIO(body))
    if rows.fieldnames != COLUMNS:
        raise TableError(f"its columns are not {','.join(COLUMNS)}")
    table: Table = {}
    for number, row in enumerate(rows, start=3):
        try:
            values: list[Any] = [row[name] for name in COLUMNS[:TEXT_COLUMNS]]
            kind = Kind(*values, *(int(row[name]) for name in COLUMNS[TEXT_COLUMNS:-2]))
            seconds = float(row["seconds"])
        except (TypeError, ValueError):
            raise TableError(f"line {number} cannot be read") from None
        if not (0 < seconds < math.inf) or not row["computed_by"]:
            raise TableError(f"line {number} has no time of a kernel")
        table.setdefault(kind, {})[row["computed_by"]] = seconds
    return machine, table


def text_of(machine: Machine, table: Mapping[Kind, Mapping[str, float]]) -> str:
    """Return the text of a table file."""
    text = io.StringIO()
    about = f"device {machine.device}; family {machine.family}; torch {machine.torch}; threads {machine.threads}"
    text.write(f"{FORMAT_LINE}; {about}\n")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for kind in sorted(table, key=astuple):
        rows.writerows([*astuple(kind), name, f"{seconds:.3e}"] for name, seconds in sorted(table[kind].items()))
    return text.getvalue()


def write(path: Path, machine: Machine, table: Mapping[Kind, Mapping[str, float]]) -> None:
    """Write a table atomically.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")  # several machines may share the folder
    try:
        new.write_text(text_of(machine, table), encoding="utf-8")
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def save(machine: Machine) -> None:
    """Write the user's own table, with the times that are in memory. A file that cannot be used is rebuilt.

    Raises:
        OSError: it cannot be written.
    """
    path = own_path(machine)
    with _lock:
        try:
            with _file_lock(path):
                write(path, machine, own(machine))
        except OSError as error:
            _failures[path] = f"{path} cannot be written: {error.strerror or error}"
            raise
        _unwritten.pop(path, None)
        _failures.pop(path, None)


@contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    """Lock a table against other processes inside the block, where the system has file locks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f".{path.name}.lock"), "wb") as locked:  # the table itself is replaced at each change
        if fcntl is None:
            yield
            return
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(locked, fcntl.LOCK_EX)
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.flock(locked, fcntl.LOCK_UN)  # closing is not enough if a process was forked meanwhile


def extend(machine: Machine, measured: Iterable[tuple[Kind, Mapping[str, float]]]) -> None:
    """Add measurements to the user's own table, in place of older ones; a kind without times is removed.

    If the file cannot be written, they are kept in memory for this process, with one warning.
    """
    path = own_path(machine)
    with _lock:
        # Not changed in place: other threads read it.
        _unwritten[path] = _unwritten.get(path, {}) | {kind: dict(times) for kind, times in measured}
        has_warned = path in _failures
        try:
            save(machine)
        except OSError:
            if not has_warned:
                words = f"kernel table {_failures[path]}; measured times are kept in memory, for this process alone"
                warnings.warn(words, stacklevel=2)
