"""The measured table: how long each kernel took on layers of one kind, on one machine.

Its first line names the machine: device, family of instructions, torch, threads. Tables are shipped in ``tables/``, one
per family and number of threads, and hold for all devices of it. What is measured on a user's own machine goes into a
file of the cache folder, one per machine, which wins where both speak. All are plain text, one row per kind of layer
and kernel: read them, share them, delete them.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from gconv.kernels.geometry import Geometry
from gconv.kernels.machine import Machine

SHIPPED = Path(__file__).parent / "tables"
HEAD = "# gconv kernel table 2"  # the number is that of the format
REACH = 2  # steps, halvings or doublings of a size, from which a measured kind may still speak for another


@dataclass(frozen=True)
class Kind:
    """Layers that are taken for alike: what a row of the table speaks for. Sizes are rounded powers of two.

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
        """The kind of one layer."""
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
    def sort(self) -> tuple:
        """What must agree for two kinds to be comparable."""
        return astuple(self)[:6]

    def distance(self, other: Kind) -> int:
        """Steps between two comparable kinds."""
        return sum(abs(a - b) for a, b in zip(astuple(self)[6:], astuple(other)[6:], strict=True))


Table = dict[Kind, dict[str, float]]  # seconds of each kernel


class TableError(ValueError):
    """A table file that cannot be used: one line, why."""


def nearest(table: Table, kind: Kind) -> tuple[Kind, int] | None:
    """The measured kind that speaks for this one, and its distance; None where none is near enough."""
    if kind in table:
        return kind, 0
    near = [(kind.distance(other), i, other) for i, other in enumerate(table) if other.sort == kind.sort]
    if not near or min(near)[0] > REACH:
        return None
    steps, _, other = min(near)
    return other, steps


def near(table: Table, geometries: Iterable[Geometry]) -> Table:
    """The part of a table that may speak for some layers, in any dtype, layout and size of input."""
    wanted = [Kind.of("conv2d", geometry, torch.float32, True, 0) for geometry in geometries]

    def is_near(kind: Kind) -> bool:
        alike = [replace(w, dtype=kind.dtype, layout=kind.layout, op=kind.op, pixels=kind.pixels) for w in wanted]
        return any(w.sort == kind.sort and w.distance(kind) <= REACH for w in alike)

    return {kind: times for kind, times in table.items() if is_near(kind)}


def shipped_path(machine: Machine) -> Path:
    """The shipped table for a machine: of its family and number of threads."""
    return SHIPPED / f"{machine.family}{f'-threads-{machine.threads}' if machine.threads else ''}.csv"


def own_path(machine: Machine) -> Path:
    """The user's own table for a machine, in ``$XDG_CACHE_HOME/gconv/kernels``, by default under ``~/.cache``."""
    cache_folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = re.sub(r"[^\w.+]+", "-", str(machine)).strip("-")
    return cache_folder / "gconv" / "kernels" / f"{name}.csv"


_pinned: Table | None = None


@contextmanager
def pinned(table: Table) -> Iterator[None]:
    """Have a table speak inside the block, in all threads, and no other."""
    global _pinned
    before, _pinned = _pinned, table
    try:
        yield
    finally:
        _pinned = before


def is_pinned() -> bool:
    """Whether one table alone speaks."""
    return _pinned is not None


def own(machine: Machine) -> Table:
    """The user's own table for a machine; empty where there is none that can be used."""
    try:
        made_on, table = read(own_path(machine))
    except (TableError, FileNotFoundError):
        return {}
    return table if made_on == machine else {}


def load(machine: Machine) -> Table:
    """The table that speaks for a machine: the shipped one, and over it the user's own.

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
            table |= times
        except FileNotFoundError:
            pass
        except (TableError, OSError) as error:
            warnings.warn(f"kernel table {path} is ignored: {error}; `make bench-kernels` rebuilds it", stacklevel=2)
    return table


def forget() -> None:
    """Read the files again at the next look into a table."""
    _load.cache_clear()


COLUMNS = [*(field.name for field in fields(Kind)), "computed_by", "seconds"]
TEXTS = 5  # columns, from the left
FIRST_LINE = re.compile(
    re.escape(HEAD)
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
    """``read`` of a file's text."""
    head, _, body = text.partition("\n")
    if not head.startswith(f"{HEAD};"):
        raise TableError(f"it begins with {head[:40]!r}, not with {HEAD!r}")
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
            values: list[Any] = [row[name] for name in COLUMNS[:TEXTS]]
            kind = Kind(*values, *(int(row[name]) for name in COLUMNS[TEXTS:-2]))
            seconds = float(row["seconds"])
        except (TypeError, ValueError):
            raise TableError(f"line {number} cannot be read") from None
        if not (0 < seconds < math.inf) or not row["computed_by"]:
            raise TableError(f"line {number} has no time of a kernel")
        table.setdefault(kind, {})[row["computed_by"]] = seconds
    return machine, table


def text_of(machine: Machine, table: Mapping[Kind, Mapping[str, float]]) -> str:
    """A table as the text of a file."""
    text = io.StringIO()
    about = f"device {machine.device}; family {machine.family}; torch {machine.torch}; threads {machine.threads}"
    text.write(f"{HEAD}; {about}\n")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for kind in sorted(table, key=astuple):
        rows.writerows([*astuple(kind), name, f"{seconds:.3e}"] for name, seconds in sorted(table[kind].items()))
    return text.getvalue()


def write(path: Path, machine: Machine, table: Mapping[Kind, Mapping[str, float]]) -> None:
    """Write a table, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(text_of(machine, table), encoding="utf-8")
    new.replace(path)


def extend(machine: Machine, measured: Iterable[tuple[Kind, Mapping[str, float]]]) -> Table:
    """Add measurements to the user's own table, instead of what it said of the same kinds; no times remove a kind.

    A file that cannot be used is rebuilt.
    """
    table = own(machine) | {kind: dict(times) for kind, times in measured}
    table = {kind: times for kind, times in table.items() if times}
    write(own_path(machine), machine, table)
    return table
