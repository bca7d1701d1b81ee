"""Packing of groups of unequal sizes into the equal bins of one uniform grouped convolution.

Neighbouring groups share a bin; all bins have the same capacity. Logarithmic groups fill two bins exactly: the first
group fills one, and all others fill the second. Several packings (``nested``) multiply fewer zeros: one of the widest
group, one of the groups on each side of it. For logarithmic groups they need 0.375 of the dense products, not 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby, pairwise

MAX_GROUPS_FOR_ALL_CAPACITIES = 32  # with more groups, only some capacities are tried
VECTOR_CHANNELS = 16  # channels that fill the vector units of a CPU


@dataclass(frozen=True)
class Packing:
    """Groups that share each bin, and the capacity of the bins.

    Attributes:
        bins: (first, last + 1) group of each bin, in order.
        in_capacity, out_capacity: input and output channels of every bin, padding included.
    """

    bins: tuple[tuple[int, int], ...]
    in_capacity: int
    out_capacity: int

    @property
    def links(self) -> int:
        """Channel pairs that are multiplied, zeros included: the cost of the packing."""
        return len(self.bins) * self.in_capacity * self.out_capacity


def cheapest_packing(in_sizes: tuple[int, ...], out_sizes: tuple[int, ...]) -> Packing:
    """Return the packing into contiguous bins that multiplies the fewest channel pairs, then has the fewest bins.

    With many groups only multiples of the widest group are tried as capacities.
    """
    if len(set(in_sizes)) == len(set(out_sizes)) == 1:
        return Packing(tuple((g, g + 1) for g in range(len(in_sizes))), in_sizes[0], out_sizes[0])
    groups, widest, total = range(len(in_sizes)), max(in_sizes), sum(in_sizes)
    if len(in_sizes) <= MAX_GROUPS_FOR_ALL_CAPACITIES:
        capacities = {sum(in_sizes[a : b + 1]) for a in groups for b in groups if b >= a}
    else:
        capacities = {*range(widest, total, widest), total}
    packings = [_fill(in_sizes, out_sizes, capacity) for capacity in capacities if capacity >= widest]
    return min(packings, key=lambda packing: (packing.links, len(packing.bins)))


def one_packing(in_sizes: tuple[int, ...], out_sizes: tuple[int, ...]) -> tuple[Packing, ...]:
    """Return the cheapest packing of all groups into one uniform convolution."""
    return (cheapest_packing(in_sizes, out_sizes),)


def one_bin(in_sizes: tuple[int, ...], out_sizes: tuple[int, ...]) -> tuple[Packing, ...]:
    """Return one packing with all groups in one bin: a dense convolution."""
    return (Packing(((0, len(in_sizes)),), sum(in_sizes), sum(out_sizes)),)


def nested_packings(in_sizes: tuple[int, ...], out_sizes: tuple[int, ...]) -> tuple[Packing, ...]:
    """Return one packing of the group with the most channel pairs, and one of the groups on either side of it."""
    links = [i * o for i, o in zip(in_sizes, out_sizes, strict=True)]
    widest = links.index(max(links))
    cuts = sorted({0, widest, widest + 1, len(links)})
    packings = []
    for first, last in pairwise(cuts):
        part = cheapest_packing(in_sizes[first:last], out_sizes[first:last])
        bins = tuple((a + first, b + first) for a, b in part.bins)
        packings.append(Packing(bins, part.in_capacity, part.out_capacity))
    return tuple(packings)


def separate_groups(in_sizes: tuple[int, ...], out_sizes: tuple[int, ...]) -> tuple[Packing, ...]:
    """Return one packing per group."""
    return tuple(Packing(((g, g + 1),), *sizes) for g, sizes in enumerate(zip(in_sizes, out_sizes, strict=True)))


def equal_neighbours(in_sizes: tuple[int, ...], out_sizes: tuple[int, ...]) -> tuple[Packing, ...]:
    """Return one packing per sequence of equal neighbours, each group in its own bin: nothing is wasted."""
    packings, first = [], 0
    for (in_size, out_size), run in groupby(zip(in_sizes, out_sizes, strict=True)):
        last = first + len(list(run))
        packings.append(Packing(tuple((g, g + 1) for g in range(first, last)), in_size, out_size))
        first = last
    return tuple(packings)


def narrow_neighbours(in_sizes: tuple[int, ...], out_sizes: tuple[int, ...]) -> tuple[Packing, ...]:
    """Return ``equal_neighbours`` in which neighbours that have at most 16 channels together share one bin."""
    bins = []
    for group, (in_size, out_size) in enumerate(zip(in_sizes, out_sizes, strict=True)):
        if bins and max(bins[-1][1] + in_size, bins[-1][2] + out_size) <= VECTOR_CHANNELS:
            first, filled_in, filled_out = bins[-1]
            bins[-1] = (first, filled_in + in_size, filled_out + out_size)
        else:
            bins.append((group, in_size, out_size))
    starts = [first for first, *_ in bins] + [len(in_sizes)]
    packings, last = [], 0
    for (in_size, out_size), run in groupby(bins, key=lambda bin: bin[1:]):
        first, last = last, last + len(list(run))
        packings.append(Packing(tuple(pairwise(starts[first : last + 1])), in_size, out_size))
    return tuple(packings)


def _fill(in_sizes: tuple[int, ...], out_sizes: tuple[int, ...], in_capacity: int) -> Packing:
    """Put as many neighbouring groups into each bin as ``in_capacity`` allows."""
    starts, filled = [0], 0
    for group, size in enumerate(in_sizes):
        if filled + size > in_capacity:
            starts.append(group)
            filled = 0
        filled += size
    bins = tuple(zip(starts, [*starts[1:], len(in_sizes)], strict=True))
    return Packing(
        bins,
        max(sum(in_sizes[a:b]) for a, b in bins),
        max(sum(out_sizes[a:b]) for a, b in bins),
    )
