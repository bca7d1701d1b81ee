"""Geometry of a grouped 2-D convolution: everything except the values of its tensors.

Legend: N batch, C input channels, O output channels, H W space, K kernel, G groups, L links (pairs of an input and an
output channel that are connected).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from torch import Tensor

from gconv.partition import Partition


@dataclass(frozen=True)
class Geometry:
    """Geometry of a grouped convolution: input group g feeds output group g only.

    Attributes:
        in_groups: partition of the C input channels.
        out_groups: partition of the O output channels, into equally many groups.
        kernel_size: (Kh, Kw).
        stride, padding, dilation: as in ``torch.nn.functional.conv2d``; zeros are padded.

    Raises:
        ValueError: inputs and outputs are cut into different numbers of groups.
    """

    in_groups: Partition
    out_groups: Partition
    kernel_size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if self.in_groups.groups != self.out_groups.groups:
            raise ValueError(
                f"inputs are cut into {self.in_groups.groups} groups ({self.in_groups}), "
                f"outputs into {self.out_groups.groups} ({self.out_groups}); the numbers must be equal"
            )

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:  # hashing a thousand sizes at every call would cost more than the call
        cut = (self.in_groups.sizes, self.out_groups.sizes)
        return hash((cut, self.kernel_size, self.stride, self.padding, self.dilation))

    @property
    def groups(self) -> int:
        """Number of groups."""
        return len(self.in_groups.sizes)

    @cached_property
    def is_uniform(self) -> bool:
        """True if ``nn.Conv2d(groups=G)`` computes the same function."""
        return self.in_groups.is_uniform and self.out_groups.is_uniform

    @cached_property
    def links(self) -> tuple[int, ...]:
        """Connected channel pairs of each group."""
        return tuple(i * o for i, o in zip(self.in_groups.sizes, self.out_groups.sizes, strict=True))

    @cached_property
    def numbers(self) -> int:
        """Numbers of the weight of all groups."""
        return sum(self.links) * math.prod(self.kernel_size)

    @cached_property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the one weight tensor: (O, C/G, Kh, Kw) where uniform, else (L, Kh, Kw), group after group."""
        if self.is_uniform:
            return (self.out_groups.channels, self.in_groups.sizes[0], *self.kernel_size)
        return (sum(self.links), *self.kernel_size)

    def group_weights(self, weight: Tensor) -> list[Tensor]:
        """Return views of ``weight``, one of shape (O_g, C_g, Kh, Kw) per group."""
        if self.is_uniform:
            return list(weight.split(self.out_groups.sizes[0]))
        return [
            part.view(out_size, in_size, *self.kernel_size)
            for part, in_size, out_size in zip(
                weight.split(list(self.links)), self.in_groups.sizes, self.out_groups.sizes, strict=True
            )
        ]

    def output_size(self, input_size: Sequence[int]) -> tuple[int, int]:
        """Return (H', W') for an input of (H, W); zero or less if the kernel does not fit."""
        height, width = (
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, p, d, k, s in zip(
                input_size, self.padding, self.dilation, self.kernel_size, self.stride, strict=True
            )
        )
        return height, width

    def __str__(self) -> str:
        """Return a text for messages: ``64 -> 64 channels in groups log:3, kernel 3×3``."""
        cut = str(self.out_groups)
        if str(self.in_groups) != cut:
            cut = f"{self.in_groups} -> {cut}"
        words = f"{self.in_groups.channels} -> {self.out_groups.channels} channels in groups {cut}"
        return f"{words}, kernel {self.kernel_size[0]}×{self.kernel_size[1]}"


@lru_cache(maxsize=4096)
def geometry_of(
    in_sizes: tuple[int, ...],
    out_sizes: tuple[int, ...],
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Geometry:
    """Return the geometry of plain numbers; the same object for the same numbers."""
    return Geometry(Partition(in_sizes), Partition(out_sizes), kernel_size, stride, padding, dilation)
