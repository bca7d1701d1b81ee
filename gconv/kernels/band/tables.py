"""The tables that the band programs read: tiles, packed weights, jobs of the weight gradient, phases of the image.

They are kept from call to call, and made in a thread of their own, outside the pool of any CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import gcd

import torch
from torch import Tensor

from gconv.kernels.band.tiles import Blocking, TileSet, TileTable, tile_table, units
from gconv.kernels.geometry import Geometry
from gconv.kernels.new_thread import in_new_thread


@dataclass(frozen=True)
class Tables:
    """A layer's tiles on its device.

    Attributes:
        sets: the tiles of each launch.
        taps: positions of the filter kernel.
        packed_size: elements of the packed weights, zeros included.
        rows: for each set, int32 (tiles, 5): start, size, band start, band size, weight start of each tile.
        jobs: for each set, int32 (jobs, 2): tile and first block of each program of the weight gradient.
        index: int32 (packed_size,): offset of each packed weight in the weight, -1 for a zero.
        places: int32 (weights,): index of each weight in the packed weights.
    """

    sets: tuple[TileSet, ...]
    taps: int
    packed_size: int
    rows: tuple[Tensor, ...]
    jobs: tuple[Tensor, ...]
    index: Tensor
    places: Tensor


@lru_cache(maxsize=4096)
@in_new_thread
def tables(
    geometry: Geometry,
    blocking: Blocking,
    transposed: bool,
    device: torch.device,
    weight_strides: tuple[int, ...] | None = None,
) -> Tables:
    """Return the tables of a layer; of the input gradient where ``transposed``.

    Args:
        geometry, blocking, transposed: as in ``tile_table``.
        device: device of the tables.
        weight_strides: of the weight that ``index`` is for, which is read as it lies; contiguous where not given.

    Raises:
        ValueError: too many packed weights, or a weight that lies too far apart.
    """
    table = tile_table(geometry, blocking, transposed)
    index = weight_index(geometry, table, transposed)
    places = weight_places(index)
    if weight_strides is not None:
        offsets = _offsets(geometry.weight_shape, weight_strides)
        if offsets[-1] >= 2**31:
            raise ValueError(f"a weight of strides {weight_strides}: kernel 'band' takes offsets below 2^31; copy it")
        index = torch.where(index >= 0, offsets[index.clamp(min=0).long()], -1).int()
    rows = (
        [(tile.start, tile.size, tile.band_start, tile.band_size, tile.weight_start) for tile in tile_set.tiles]
        for tile_set in table.sets
    )
    jobs = (weight_jobs(tile_set, table.taps) for tile_set in table.sets)
    return Tables(
        table.sets,
        table.taps,
        table.packed_size,
        tuple(torch.tensor(values, dtype=torch.int32, device=device) for values in rows),
        tuple(torch.tensor(values, dtype=torch.int32, device=device) for values in jobs),
        index.to(device),
        places.to(device),
    )


def _offsets(shape: Sequence[int], strides: Sequence[int]) -> Tensor:
    """Return the offset of each element from the first, in the order of its index; int64 (elements,)."""
    offsets = torch.zeros((), dtype=torch.int64)
    for size, stride in zip(shape, strides, strict=True):
        offsets = offsets.unsqueeze(-1) + torch.arange(size) * stride
    return offsets.flatten()


@lru_cache(maxsize=4096)
@in_new_thread
def phases(
    geometry: Geometry, size: tuple[int, int], transposed: bool, device: torch.device
) -> tuple[Tensor, int, tuple[int, ...]]:
    """Return how the written image of a layer meets the read one.

    Returns:
        int32 (phases, 10) on the device, first to offset of both axes (see ``AxisMap``); the most positions that a
        phase has in an image; and the steps of both axes, which are the same in all phases.
    """
    rows, columns = (
        axis_map(written, kernel_size, stride, padding, dilation, transposed)
        for written, kernel_size, stride, padding, dilation in zip(
            size, geometry.kernel_size, geometry.stride, geometry.padding, geometry.dilation, strict=True
        )
    )
    kernel_width = geometry.kernel_size[1]
    table = [
        (first, count, taps, tap * kernel_width, offset, *column)
        for first, count, taps, tap, offset in rows.phases
        for column in columns.phases
    ]
    count = max(row[1] * row[6] for row in table)
    steps = (rows.read_step, columns.read_step, rows.write_step, columns.write_step)
    steps += (rows.tap_step * kernel_width, columns.tap_step, rows.move, columns.move)
    return torch.tensor(table, dtype=torch.int32, device=device), count, steps


def weight_index(geometry: Geometry, table: TileTable, transposed: bool) -> Tensor:
    """Return the index of the weight in each place of the packed weights; -1 for a zero.

    A tile's weights are dense blocks of (width, depth), depth fastest, one per step: tap by tap, and within a tap
    through the band.

    Returns:
        int32 (packed_size,): positions in the flat weight.
    """
    read, written = geometry.in_groups, geometry.out_groups
    if transposed:
        read, written = written, read
    first_weight = list(accumulate((links * table.taps for links in geometry.links), initial=0))
    labels, write_starts, read_starts = written.labels, written.starts, read.starts
    taps_K = torch.arange(table.taps).view(-1, 1, 1)
    parts = []
    for tile_set in table.sets:
        for tile in tile_set.tiles:
            steps = tile_set.steps(tile)
            places_KWR = torch.full((table.taps, tile_set.width, steps * tile_set.depth), -1, dtype=torch.int64)
            for group in range(labels[tile.start], labels[tile.start + tile.size - 1] + 1):
                rows = torch.arange(
                    max(write_starts[group], tile.start),
                    min(write_starts[group] + written.sizes[group], tile.start + tile.size),
                )
                columns = torch.arange(read_starts[group], read_starts[group] + read.sizes[group])
                row = (rows - write_starts[group]).view(1, -1, 1)
                column = (columns - read_starts[group]).view(1, 1, -1)
                out, into = (column, row) if transposed else (row, column)
                places_KWR[
                    :,
                    rows[0] - tile.start : rows[-1] + 1 - tile.start,
                    columns[0] - tile.band_start : columns[-1] + 1 - tile.band_start,
                ] = first_weight[group] + (out * geometry.in_groups.sizes[group] + into) * table.taps + taps_K
            blocks = places_KWR.view(table.taps, tile_set.width, steps, tile_set.depth).transpose(1, 2)
            parts.append(blocks.flatten())
    return torch.cat(parts).int()


def weight_places(index: Tensor) -> Tensor:
    """Return the inverse of ``weight_index``: the index of each weight in the packed weights; int32 (weights,)."""
    occupied = (index >= 0).nonzero().flatten()
    places = torch.empty(occupied.numel(), dtype=torch.int32)
    places[index[occupied].long()] = occupied.int()
    return places


def weight_jobs(tile_set: TileSet, taps: int) -> list[tuple[int, int]]:
    """Return (tile, first block) of every run of packed blocks that one program of the weight gradient sums."""
    blocks = tile_set.columns(taps) // tile_set.depth
    return [
        (number, first)
        for number, tile in enumerate(tile_set.tiles)
        for first in range(0, taps * tile_set.steps(tile), blocks)
    ]


@dataclass(frozen=True)
class AxisMap:
    """Mapping of one axis of the written image to the read image.

    Written position ``first + j · write_step`` of a phase, with j < count, is fed through its t-th tap, t < taps, from
    read position ``j · read_step + offset + t · move``, where that is inside the image; the weight is that of kernel
    position ``tap + t · tap_step``.

    Attributes:
        phases: (first, count, taps, tap, offset) of each phase.
        read_step, write_step, tap_step, move: steps, the same in all phases.
    """

    phases: tuple[tuple[int, int, int, int, int], ...]
    read_step: int
    write_step: int
    tap_step: int
    move: int


def axis_map(written: int, kernel_size: int, stride: int, padding: int, dilation: int, transposed: bool) -> AxisMap:
    """Forward there is one phase. Backward, positions that differ modulo the stride meet different taps."""
    if not transposed:
        return AxisMap(((0, written, kernel_size, 0, -padding),), stride, 1, 1, dilation)
    phases = []
    for first in range(min(stride, written)):
        met = [tap for tap in range(kernel_size) if (first + padding - tap * dilation) % stride == 0]
        tap = met[0] if met else 0
        offset = (first + padding - tap * dilation) // stride
        phases.append((first, units(written - first, stride), len(met), tap, offset))
    common = gcd(stride, dilation)
    return AxisMap(tuple(phases), 1, stride, stride // common, -dilation // common)
