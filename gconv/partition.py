"""Partition of the channels of a layer into filter groups.

A partition is an ordered cut of C channels into G contiguous groups. Three families have names:
*uniform* (C/G each), *logarithmic* (1/2, 1/4, …, 1/2^(n-1), 1/2^(n-1); Lee et al. 2017,
arXiv 1707.09855) and *arbitrary* sizes. A ``~`` before any of them rounds to whole channels where they do not divide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import gcd, lcm
from operator import index
from typing import Any, TypeAlias

Spec: TypeAlias = "int | str | Sequence[int] | Partition"


@dataclass(frozen=True)
class Partition:
    """A cut of channels into contiguous groups: ``Partition((32, 16, 8, 8))`` cuts 64 channels in four.

    Attributes:
        sizes: channels of each group, in channel order; every size at least 1.

    Raises:
        ValueError: there is no group, or a size is not a whole number of at least 1.
    """

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        sizes = tuple(map(_plain, self.sizes))
        if not sizes:
            raise ValueError("a partition needs at least one group")
        if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
            raise ValueError(f"group sizes {list(sizes)}: every size must be a whole number of at least 1")
        object.__setattr__(self, "sizes", sizes)

    @classmethod
    def uniform(cls, channels: int, groups: int) -> Partition:
        """Cut ``channels`` into ``groups`` equal groups.

        Raises:
            ValueError: ``groups`` does not divide ``channels``; the message names the nearest numbers that do.
        """
        _at_least_one(channels, "channels")
        _at_least_one(groups, "groups")
        if channels % groups:
            near_groups = _nearest([g for g in range(1, channels + 1) if channels % g == 0], groups)
            raise ValueError(
                f"{channels} channels cannot be cut into {groups} equal groups; "
                f"{groups} groups need {_multiples(channels, groups)} channels, "
                f"{channels} channels take {near_groups} groups"
            )
        return cls((channels // groups,) * groups)

    @classmethod
    def logarithmic(cls, channels: int, n: int) -> Partition:
        """Cut ``channels`` into ``n`` groups of 1/2, 1/4, …, 1/2^(n-1), 1/2^(n-1) of them (Lee et al. 2017).

        Raises:
            ValueError: ``channels`` is no multiple of 2^(n-1); the message names the nearest numbers that are.
        """
        _at_least_one(channels, "channels")
        _at_least_one(n, "groups")
        if n > channels.bit_length():
            raise ValueError(f"log:{n} needs at least 2^{n - 1} channels, not {channels}; {_deepest(channels)}")
        unit = 2 ** (n - 1)
        if channels % unit:
            raise ValueError(
                f"{channels} channels cannot be cut into {n} logarithmic groups; "
                f"log:{n} needs {_multiples(channels, unit)} channels, {_deepest(channels)}"
            )
        sizes = [channels >> k for k in range(1, n)]
        return cls((*sizes, channels >> (n - 1)))

    @classmethod
    def of(cls, spec: Spec, channels: int) -> Partition:
        """Parse a specification of groups, as a user writes it.

        Args:
            spec: ``4`` (uniform), ``"log:4"`` (logarithmic), ``"32,16,8,8"`` or ``[32, 16, 8, 8]`` (sizes, which must
                add up to ``channels``), ``"4:2:1:1"`` (proportions, for any number of channels), ``"~3"`` or
                ``"~log:4"`` (the same, to the nearest whole channels), or a Partition.
            channels: number of channels to cut.

        Raises:
            ValueError: the spec cannot be read, or cannot cut ``channels``.
        """
        spec, channels = _plain(spec), _plain(channels)
        if isinstance(spec, Partition):
            return cls._of_sizes(spec.sizes, channels)
        if isinstance(spec, int) and not isinstance(spec, bool):
            return cls.uniform(channels, spec)
        if isinstance(spec, str):
            text = spec.strip()
            try:
                if text.startswith("~"):
                    return cls._nearest_to(text[1:].strip(), channels)
                if text.startswith("log:"):
                    return cls.logarithmic(channels, _whole(text[4:]))
                if ":" in text:
                    return cls._of_proportions([_whole(part) for part in text.split(":")], channels)
                if "," in text:
                    return cls._of_sizes([_whole(part) for part in text.strip("[]()").split(",")], channels)
                return cls.uniform(channels, _whole(text))
            except _NotWholeError:
                pass
        elif (
            isinstance(spec, Sequence)
            and not isinstance(spec, bytes)
            and all(isinstance(s, int) and not isinstance(s, bool) for s in map(_plain, spec))
        ):
            return cls._of_sizes(spec, channels)
        raise ValueError(
            f"groups {spec!r} cannot be read; write a number of groups (4), log:4, sizes (32,16,8,8), "
            "proportions (4:2:1:1), or ~ before any but sizes to round to whole channels"
        )

    @classmethod
    def _of_sizes(cls, sizes: Sequence[int], channels: int) -> Partition:
        partition = cls(tuple(sizes))
        if partition.channels != channels:
            ratio = ":".join(str(size) for size in sizes)
            raise ValueError(
                f"group sizes {','.join(map(str, sizes))} add up to {partition.channels}, not to {channels} channels; "
                f"for proportions write {ratio}"
            )
        return partition

    @classmethod
    def _of_proportions(cls, parts: Sequence[int], channels: int) -> Partition:
        total = sum(cls(tuple(parts)).sizes)
        unit = lcm(*(total // gcd(part, total) for part in parts))
        if channels % unit:
            raise ValueError(
                f"{channels} channels cannot be cut in the proportions {':'.join(map(str, parts))}; "
                f"these need {_multiples(channels, unit)} channels"
            )
        return cls(tuple(channels * part // total for part in parts))

    @classmethod
    def _nearest_to(cls, text: str, channels: int) -> Partition:
        """Return the whole sizes nearest to proportions that need not divide ``channels``; none is below 1."""
        _at_least_one(channels, "channels")
        many = ValueError(f"{channels} channels cannot be cut into more than {channels} groups, as ~{text} asks")
        if ":" in text and not text.startswith("log:"):
            parts = list(cls(tuple(_whole(part) for part in text.split(":"))).sizes)
        else:
            groups = _whole(text.removeprefix("log:"))
            _at_least_one(groups, "groups")
            if groups > channels:
                raise many
            logarithmic = [2 ** max(groups - 1 - k, 0) for k in range(1, groups + 1)]
            parts = logarithmic if text.startswith("log:") else [1] * groups
        if len(parts) > channels:
            raise many
        total = sum(parts)
        sizes = [max(1, channels * part // total) for part in parts]

        def excess(group: int) -> int:
            return sizes[group] * total - channels * parts[group]

        while sum(sizes) < channels:
            sizes[min(range(len(parts)), key=excess)] += 1
        while sum(sizes) > channels:  # take back what a group raised to 1 took
            sizes[max((g for g, size in enumerate(sizes) if size > 1), key=excess)] -= 1
        return cls(tuple(sizes))

    @property
    def channels(self) -> int:
        """Number of channels of all groups."""
        return sum(self.sizes)

    @property
    def groups(self) -> int:
        """Number of groups."""
        return len(self.sizes)

    @property
    def is_uniform(self) -> bool:
        """True if all groups have the same size."""
        return len(set(self.sizes)) == 1

    @property
    def starts(self) -> tuple[int, ...]:
        """First channel of each group."""
        return tuple(accumulate(self.sizes[:-1], initial=0))

    @property
    def labels(self) -> tuple[int, ...]:
        """Group of each channel: ``Partition((2, 1)).labels == (0, 0, 1)``."""
        return tuple(group for group, size in enumerate(self.sizes) for _ in range(size))

    def __str__(self) -> str:
        """Return the shortest spec that ``Partition.of`` reads back."""
        if self.is_uniform:
            return str(self.groups)
        unit = 2 ** (self.groups - 1)
        if self.channels % unit == 0 and self == Partition.logarithmic(self.channels, self.groups):
            return f"log:{self.groups}"
        return ",".join(map(str, self.sizes))


def _plain(value: Any) -> Any:
    """Return an ``int`` for an integer of NumPy or torch, and any other value unchanged."""
    try:
        return value if isinstance(value, bool) else index(value)
    except TypeError:
        return value


class _NotWholeError(ValueError):
    pass


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise _NotWholeError(text) from None


def _at_least_one(value: int, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")


def _deepest(channels: int) -> str:
    """Return a phrase with the largest number of logarithmic groups that fits ``channels``."""
    return f"{channels} channels take at most log:{(channels & -channels).bit_length()}"


def _multiples(channels: int, unit: int) -> str:
    """Return a phrase with the multiples of ``unit`` below and above ``channels``."""
    below = channels // unit * unit
    return f"{below} or {below + unit}" if below else str(unit)


def _nearest(candidates: list[int], wanted: int) -> str:
    """Return a phrase with the largest candidate below ``wanted`` and the smallest above it."""
    below = [c for c in candidates if c < wanted]
    above = [c for c in candidates if c > wanted]
    return " or ".join(str(c) for c in (below[-1:] + above[:1]))
