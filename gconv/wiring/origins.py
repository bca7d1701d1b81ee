"""Filters that every element of a tensor comes from.

Sets of filters are numbered, so that an integer tensor can hold one set per element and be reshaped, transposed,
sliced and joined by torch's own operations. A dimension along which nothing varies has stride 0. So the cost of a union
grows with the number of different elements of a tensor, not with its size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import torch
from torch import Tensor

Filter = tuple[str, int]  # convolution, output channel


class FilterSet(Set[Filter]):
    """An immutable set of filters; equals a ``frozenset`` of the same ``(convolution, output channel)``.

    Attributes:
        channels: for each convolution an integer whose bit c is set if output channel c is in the set. So a set of all
            filters of a deep network takes little memory.
    """

    __slots__ = ("_code", "channels")

    def __init__(self, channels: Mapping[str, int] | None = None) -> None:
        self.channels = dict(channels or {})
        self._code: int | None = None

    @classmethod
    def of(cls, convolution: str, channel: int) -> FilterSet:
        """Return the set of one filter."""
        return cls({convolution: 1 << channel})

    @classmethod
    def union(cls, sets: Iterable[FilterSet]) -> FilterSet:
        """Return the union of sets."""
        channels: dict[str, int] = {}
        for one in sets:
            for convolution, bits in one.channels.items():
                channels[convolution] = channels.get(convolution, 0) | bits
        return cls(channels)

    @classmethod
    def _from_iterable(cls, it: Iterable[Any]) -> FilterSet:
        return cls.union(cls.of(*one) for one in it)

    def __contains__(self, item: object) -> bool:
        if not isinstance(item, tuple) or len(item) != 2:
            return False
        return bool(self.channels.get(item[0], 0) >> item[1] & 1)

    def __iter__(self) -> Iterator[Filter]:
        return ((convolution, c) for convolution, bits in self.channels.items() for c in set_bits(bits))

    def __len__(self) -> int:
        return sum(bits.bit_count() for bits in self.channels.values())

    def __eq__(self, other: object) -> bool:
        return self.channels == other.channels if isinstance(other, FilterSet) else super().__eq__(other)

    def __hash__(self) -> int:
        if self._code is None:  # with the length, because Python's hash of 2^c repeats every 61 channels
            self._code = hash(frozenset((name, bits, bits.bit_length()) for name, bits in self.channels.items()))
        return self._code

    def __repr__(self) -> str:
        return f"FilterSet({sorted(self)})"


def set_bits(bits: int) -> list[int]:
    """Return the positions of the bits that are set, lowest first: 0b101 gives [0, 2]."""
    places = []
    while bits:
        lowest = bits & -bits
        places.append(lowest.bit_length() - 1)
        bits ^= lowest
    return places


class Origins:
    """Numbering of sets of filters. 0 is the empty set: elements from the input of the network or its parameters."""

    def __init__(self) -> None:
        self.sets = [FilterSet()]
        self._numbers = {self.sets[0]: 0}

    def number(self, filters: FilterSet) -> int:
        """Return the number of a set; equal sets have the same number."""
        if filters not in self._numbers:
            self._numbers[filters] = len(self.sets)
            self.sets.append(filters)
        return self._numbers[filters]

    def filters_of(self, convolution: str, count: int) -> Tensor:
        """Return the origin (C,) of the outputs of a convolution: channel c comes from filter c."""
        numbers = [self.number(FilterSet.of(convolution, channel)) for channel in range(count)]
        return torch.tensor(numbers, device="cpu")

    def union(self, origins: list[Tensor], shape: Iterable[int]) -> Tensor:
        """Return the elementwise union of origins, which are broadcast."""
        shape = tuple(shape)
        united, *others = [origin.expand(shape) for origin in origins]
        for other in others:
            a, b = _narrow(united, other)
            pairs, place = (a * len(self.sets) + b).unique(return_inverse=True)
            sides = [divmod(pair, len(self.sets)) for pair in pairs.tolist()]
            numbers = [self._either(left, right) for left, right in sides]
            united = torch.tensor(numbers, device="cpu")[place].expand(shape)
        return united

    def _either(self, a: int, b: int) -> int:
        if a == b or not a or not b:
            return a or b
        return self.number(FilterSet.union((self.sets[a], self.sets[b])))

    def union_over(self, origin: Tensor, dims: Iterable[int]) -> Tensor:
        """Return the union along ``dims``, which keep size 1."""
        (small,) = _narrow(origin)
        over = sorted({dim % origin.dim() for dim in dims if small.shape[dim] > 1})
        if over:
            rows = small.movedim(over, list(range(-len(over), 0))).flatten(-len(over))
            place = torch.arange(rows[..., 0].numel(), device="cpu").view(*rows.shape[:-1], 1)
            occurring = (place * len(self.sets) + rows).unique()
            members: list[list[int]] = [[] for _ in range(place.numel())]
            for row_and_number in occurring.tolist():
                row, number = divmod(row_and_number, len(self.sets))
                members[row].append(number)
            known: dict[tuple[int, ...], int] = {}  # many rows have the same elements
            for numbers in map(tuple, members):
                if numbers not in known:
                    known[numbers] = self.number(FilterSet.union(self.sets[n] for n in numbers))
            united = torch.tensor([known[tuple(numbers)] for numbers in members], device="cpu")
            small = united.view([1 if dim in over else size for dim, size in enumerate(small.shape)])
        dims = {dim % origin.dim() for dim in dims}
        return small.expand([1 if dim in dims else size for dim, size in enumerate(origin.shape)])


def uniform(origin: Tensor) -> Tensor:
    """Return equal values, with stride 0 along every dimension in which they do not vary."""
    (small,) = _narrow(origin)
    for dim, size in enumerate(small.shape):
        first = small.narrow(dim, 0, 1) if size > 1 else small
        if size > 1 and torch.equal(small, first.expand_as(small)):
            small = first
    return small.expand(origin.shape)


def comes_from_none(origin: Tensor) -> bool:
    """Return True if no element comes from any filter."""
    return not _narrow(origin)[0].any()


def _narrow(*origins: Tensor) -> list[Tensor]:
    """Reduce to one element every dimension in which all tensors, of one shape, have stride 0."""
    shape = origins[0].shape
    kept = [size > 1 and any(o.stride(dim) for o in origins) for dim, size in enumerate(shape)]
    return [o[tuple(slice(None) if keep else slice(0, 1) for keep in kept)] for o in origins]
