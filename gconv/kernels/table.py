"""The measured table: how long each kernel took on layers of one kind, on devices of one family.

One CSV per device family is shipped in ``tables/``; what ``make bench-kernels`` measures on a user's own machine goes
into one more, in the cache folder, which wins where both speak. Both are plain text, one row per kind of layer and
kernel: read them, share them, delete them.
"""

from __future__ import annotations

import csv
import io
import math
import os
import platform
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch

from gconv.kernels.geometry import Geometry

SHIPPED = Path(__file__).parent / "tables"
HEAD = "# gconv kernel table 1"  # the number is that of the format
REACH = 2  # steps, halvings or doublings of a size, from which a measured kind may still speak for another


@dataclass(frozen=True)
class Kind:
    """Layers that are taken for alike: what a row of the table speaks for. Sizes are rounded powers of two.

    Attributes:
        family: of the device, ``cpu-avx512`` or ``cuda-sm90``.
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

    family: str
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
    def of(
        cls, op: str, geometry: Geometry, dtype: torch.dtype, family: str, channels_last: bool, pixel_bits: int
    ) -> Kind:
        """The kind of one layer."""
        channels = geometry.in_groups.channels * geometry.out_groups.channels
        links = geometry.links
        return cls(
            family,
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
        return astuple(self)[:7]

    def distance(self, other: Kind) -> int:
        """Steps between two comparable kinds."""
        return sum(abs(a - b) for a, b in zip(astuple(self)[7:], astuple(other)[7:], strict=True))


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


@cache
def device_family(device: torch.device) -> str:
    """The family of a device: CPUs by their vector units, GPUs by their compute capability."""
    if device.type == "cuda":
        return "cuda-sm{}{}".format(*torch.cuda.get_device_capability(device))
    if device.type != "cpu":
        return device.type
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"cpu-{platform.machine().lower()}"
    units = torch.backends.cpu.get_cpu_capability().lower()
    if units == "avx512":
        units = "amx" if torch.cpu._is_amx_tile_supported() else units
        units = "avx512bf16" if units == "avx512" and torch.cpu._is_avx512_bf16_supported() else units
    return f"cpu-{units}"


def user_path() -> Path:
    """Where the user's own measurements lie: ``$XDG_CACHE_HOME/gconv/kernels.csv``, by default under ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gconv" / "kernels.csv"


@cache
def load(family: str) -> Table:
    """The shipped table of a device family, and the user's own over it. A file that cannot be used warns once."""
    table: Table = {}
    for path, own in ((SHIPPED / f"{family}.csv", False), (user_path(), True)):
        try:
            table |= {kind: times for kind, times in read(path, fresh=own).items() if kind.family == family}
        except FileNotFoundError:
            pass
        except (TableError, OSError) as error:
            warnings.warn(f"kernel table {path} is ignored: {error}; `make bench-kernels` rebuilds it", stacklevel=2)
    return table


def read(path: Path, fresh: bool = False) -> Table:
    """Read a table.

    Args:
        path: of the file.
        fresh: whether only measurements of the installed torch count.

    Raises:
        TableError: the file is broken, of another format, or (``fresh``) stale.
        FileNotFoundError: there is none.
    """
    try:
        head, _, body = path.read_text(encoding="utf-8").partition("\n")
    except UnicodeDecodeError:
        raise TableError("it is no text") from None
    form, _, version = head.partition("; torch ")
    if form != HEAD:
        raise TableError(f"it begins with {head[:40]!r}, not with {HEAD!r}")
    if fresh and version != torch.__version__:
        raise TableError(f"it was measured with torch {version}, not with {torch.__version__}")
    rows = csv.DictReader(io.StringIO(body))
    columns = [*(field.name for field in fields(Kind)), "computed_by", "seconds"]
    if rows.fieldnames != columns:
        raise TableError(f"its columns are not {','.join(columns)}")
    table: Table = {}
    for number, row in enumerate(rows, start=3):
        try:
            values: list[Any] = [row[name] for name in columns[:6]] + [int(row[name]) for name in columns[6:-2]]
            kind = Kind(*values)
            seconds = float(row["seconds"])
        except (TypeError, ValueError):
            raise TableError(f"line {number} cannot be read") from None
        if not (0 < seconds < math.inf) or not row["computed_by"]:
            raise TableError(f"line {number} has no time of a kernel")
        table.setdefault(kind, {})[row["computed_by"]] = seconds
    return table


def write(path: Path, table: Mapping[Kind, Mapping[str, float]]) -> None:
    """Write a table, whole or not at all."""
    text = io.StringIO()
    text.write(f"{HEAD}; torch {torch.__version__}\n")
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow([*(field.name for field in fields(Kind)), "computed_by", "seconds"])
    for kind in sorted(table, key=astuple):
        rows.writerows([*astuple(kind), name, f"{seconds:.3e}"] for name, seconds in sorted(table[kind].items()))
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(text.getvalue(), encoding="utf-8")
    new.replace(path)


def extend(path: Path, measured: Iterable[tuple[Kind, Mapping[str, float]]]) -> Table:
    """Add measurements to a file, instead of what it said of the same kinds; no times remove a kind.

    A file that cannot be used is rebuilt.
    """
    try:
        table = read(path, fresh=True)
    except (TableError, FileNotFoundError):
        table = {}
    table |= {kind: dict(times) for kind, times in measured}
    table = {kind: times for kind, times in table.items() if times}
    write(path, table)
    return table
