"""The static tables behind the band kernels: which output channels a program computes, and from which inputs.

A tile is up to BN neighbouring output channels. Its band is the range of input channels that feeds them: the union of
the groups it touches, which is one range because groups are contiguous. Groups wider than a narrow tile are cut into
wide tiles of their own; all the others share narrow tiles, in which their weights are block-diagonal. So any
partition is a list of small dense products.

"Written" and "read" rather than output and input: the input gradient is the same computation the other way round.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from math import gcd

from gconv.kernels.geometry import Geometry
from gconv.partition import Partition

VECTOR = 8  # channels in 16 bytes of a 16-bit format
COLUMNS = 128  # (tap, read channel) columns of a program of the weight gradient, at most
STEP_BYTES = 128  # pixels of a step of the weight gradient, times bytes of a number


@dataclass(frozen=True)
class Blocking:
    """Sizes of the blocks into which the work is cut for the hardware.

    Attributes:
        pixels: output positions a program computes.
        narrow: written channels of a tile that groups share, and the read channels of one of its steps.
        wide: written channels of a tile inside a group of more than ``narrow`` channels.
        depth: read channels of one step of a wide tile.
        stages: steps in flight at the same time.
        rows: True if a program computes ``pixels`` positions of four neighbouring rows, which share what they read.
    """

    pixels: int = 128
    narrow: int = 32
    wide: int = 64
    depth: int = 64
    stages: int = 3
    rows: bool = False

    def __str__(self) -> str:
        """Return the name of the variant in tables of measured kernels."""
        numbers = self.pixels, self.narrow, self.wide, self.depth, self.stages
        return f"{'rows' if self.rows else 'single'} {'/'.join(map(str, numbers))}"

    def shared_bytes(self, itemsize: int) -> int:
        """Shared memory of the largest program, at most: each stage holds pixels and weights, or columns and pixels."""
        loaded = (6 * self.pixels + 3 * self.wide) if self.rows else (self.pixels + self.wide)
        forward = loaded * self.depth
        backward = (COLUMNS + self.wide) * (STEP_BYTES // itemsize)
        return max(self.stages, 2) * max(forward, backward) * itemsize


def blockings(geometry: Geometry, itemsize: int) -> tuple[Blocking, ...]:
    """Return the blockings worth timing for a layer; the first is the rule where nothing is timed.

    Wide tiles have the width that leaves least room empty, the larger where equal. In 32 bits arithmetic is the bound,
    so that tiles are smaller, which multiplies fewer zeros. One stage reads through the first-level cache, more let
    reading overlap with arithmetic. Wide and narrow groups share one launch if wide tiles are as small as narrow ones,
    which read the wide groups more often: the last blocking of a layer that has both.

    Args:
        geometry: the layer.
        itemsize: bytes of a number: 2 or 4.
    """
    narrow, depth, widths = (16, 32, (32, 64)) if itemsize > 2 else (32, 64, (64, 128))  # 128 spills registers in fp32
    sizes = [size for cut in (geometry.in_groups, geometry.out_groups) for size in cut.sizes if size > narrow]
    wide = min(widths, key=lambda width: (sum(units(size, width) * width for size in sizes), -width))
    aligned = not any(cut.channels % VECTOR for cut in (geometry.in_groups, geometry.out_groups))
    single = not aligned or any(size % VECTOR for size in sizes)  # channels that are moved one by one: registers
    depth = depth if aligned else 32
    first = Blocking(64 if single else 128, narrow, wide, depth)
    others = (
        Blocking(pixels, narrow, width, depth, stages)
        for pixels in ((64, 32) if single else (128, 64))
        for width in sorted({64, wide})
        for stages in (3, 4, 1)
    )
    rows = (Blocking(64, narrow, min(widths), 32, stages, True) for stages in (2, 1))
    as_rows = aligned and in_rows(geometry)
    both = 0 < len(sizes) < 2 * geometry.groups
    together = Blocking(64 if as_rows or single else 128, narrow, narrow, narrow, 2, as_rows)
    return tuple(dict.fromkeys((*(rows if as_rows else ()), first, *others, *((together,) if both else ()))))


def in_rows(geometry: Geometry) -> bool:
    """Return True if neighbouring rows of a result share read rows: three adjacent kernel rows, stride 1."""
    return geometry.kernel_size[0] == 3 and geometry.stride == (1, 1) and geometry.dilation[0] == 1


@dataclass(frozen=True)
class Tile:
    """Written channels ``start`` … ``start + size`` and the band of read channels that feeds them.

    Attributes:
        start, size: the written channels.
        band_start, band_size: the read channels.
        weight_start: where the packed weights of the tile begin, in elements.
    """

    start: int
    size: int
    band_start: int
    band_size: int
    weight_start: int


@dataclass(frozen=True)
class TileSet:
    """Tiles of one size, computed by one launch.

    Attributes:
        width: written channels that a tile has room for.
        depth: read channels of one step.
        tiles: the tiles, in channel order.
        read_align, written_align: 1 … 8, a divisor of every channel offset and size.
    """

    width: int
    depth: int
    tiles: tuple[Tile, ...]
    read_align: int
    written_align: int

    def steps(self, tile: Tile) -> int:
        """Return the number of steps of ``depth`` channels through the band of a tile."""
        return units(tile.band_size, self.depth)

    def columns(self, taps: int) -> int:
        """(tap, read channel) columns of one program of the weight gradient, in whole steps.

        Channels that are read one by one need registers for each: of them a program has half as many.
        """
        few = taps * self.depth * max(map(self.steps, self.tiles)) <= COLUMNS // 2
        return COLUMNS // 2 if few or self.read_align < VECTOR else COLUMNS

    def pixels(self, itemsize: int) -> int:
        """Return the number of pixels of one step of the weight gradient."""
        pixels = STEP_BYTES // itemsize
        return pixels // 2 if self.read_align < VECTOR else pixels


@dataclass(frozen=True)
class TileTable:
    """All tiles of a layer.

    Attributes:
        sets: the wide tiles, then the narrow ones; one set where all have one shape, or where the other is empty.
        taps: positions of the filter kernel.
        packed_size: elements of the packed weights, zeros included.
    """

    sets: tuple[TileSet, ...]
    taps: int
    packed_size: int


def tile_table(geometry: Geometry, blocking: Blocking, transposed: bool) -> TileTable:
    """Cut the written channels of a layer into tiles.

    Args:
        geometry: the layer.
        blocking: sizes of the tiles.
        transposed: write input channels and read output channels, as the input gradient does.

    Raises:
        ValueError: the packed weights would have 2^31 elements or more.
    """
    read, written = geometry.in_groups, geometry.out_groups
    if transposed:
        read, written = written, read
    taps = geometry.kernel_size[0] * geometry.kernel_size[1]
    bands = _bands(read, written)
    wide, narrow = [], []
    run: list[int] = []
    for group, (start, size) in enumerate(zip(written.starts, written.sizes, strict=True)):
        if size <= blocking.narrow:
            run.append(group)
            continue
        narrow += _shared_spans(run, written, bands, blocking.narrow)
        run = []
        wide += [(at, min(at + blocking.wide, start + size)) for at in range(start, start + size, blocking.wide)]
    narrow += _shared_spans(run, written, bands, blocking.narrow)

    sets, packed_size = [], 0
    shapes = {(blocking.wide, blocking.depth): wide}
    shapes[blocking.narrow, blocking.narrow] = [*shapes.get((blocking.narrow, blocking.narrow), ()), *narrow]
    for (width, depth), spans in shapes.items():
        tiles = []
        for start, stop in spans:
            band_start, band_stop = bands[start][0], bands[stop - 1][1]
            tiles.append(Tile(start, stop - start, band_start, band_stop - band_start, packed_size))
            packed_size += taps * units(band_stop - band_start, depth) * depth * width
        if tiles:
            reads = [n for tile in tiles for n in (tile.band_start, tile.band_size)]
            writes = [n for tile in tiles for n in (tile.start, tile.size)]
            sets.append(
                TileSet(
                    width,
                    depth,
                    tuple(tiles),
                    gcd(VECTOR, read.channels, *reads),
                    gcd(VECTOR, written.channels, *writes),
                )
            )
    if packed_size >= 2**31:
        raise ValueError(f"{packed_size} packed weights; kernel 'band' takes layers of less than 2^31")
    return TileTable(tuple(sets), taps, packed_size)


def _bands(read: Partition, written: Partition) -> list[tuple[int, int]]:
    """Return the read channels of each written channel: those of its group, extended to whole 16 bytes if possible."""
    unit = 1 if read.channels % VECTOR else VECTOR
    return [
        (start // unit * unit, -(-(start + size) // unit) * unit)
        for start, size, copies in zip(read.starts, read.sizes, written.sizes, strict=True)
        for _ in range(copies)
    ]


def _shared_spans(
    groups: list[int], written: Partition, bands: list[tuple[int, int]], width: int
) -> list[tuple[int, int]]:
    """Cut a run of neighbouring narrow groups where that moves fewest channels; fewer tiles where equal."""
    if not groups:
        return []
    starts = written.starts
    first, stop = starts[groups[0]], starts[groups[-1]] + written.sizes[groups[-1]]
    if written.channels % VECTOR:
        points = [*(starts[group] for group in groups), stop]
    else:  # cuts that keep 16-byte accesses
        points = sorted({first, stop, *range(-(-first // VECTOR) * VECTOR, stop, VECTOR)})
    best = {first: (0, 0, first)}  # the cheapest way to get to a point: cost, tiles, where the last tile begins
    for end in points[1:]:
        best[end] = min(
            (best[at][0] + width + units(bands[end - 1][1] - bands[at][0], width) * width, best[at][1] + 1, at)
            for at in points[bisect_left(points, end - width) : bisect_left(points, end)]
        )
    spans, end = [], stop
    while end > first:
        spans.append((best[end][2], end))
        end = best[end][2]
    return spans[::-1]


def units(size: int, unit: int) -> int:
    """Return the number of units that hold a size."""
    return -(-size // unit)
