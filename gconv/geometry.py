"""Geometry: everything about a grouped 2-D convolution except its numbers.

Legend: N batch, C input channels, O output channels, H W space, K kernel, G groups, L links (pairs of an input and an
output channel that are connected).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from gconv.packing import Packing, cheapest_packing
from gconv.partition import Partition


@dataclass(frozen=True)
class Geometry:
    """Input group g feeds output group g, and nothing else.

    Attributes:
        in_groups: cut of the C input channels.
        out_groups: cut of the O output channels, into as many groups.
        kernel_size: (Kh, Kw).
        stride, padding, dilation: as in ``torch.nn.functional.conv2d``; zeros are padded.
        packing: how the groups share bins where one uniform convolution computes them all.

    Raises:
        ValueError: inputs and outputs are cut into different numbers of groups.
    """

    in_groups: Partition
    out_groups: Partition
    kernel_size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    packing: Packing = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.in_groups.groups != self.out_groups.groups:
            raise ValueError(
                f"inputs are cut into {self.in_groups.groups} groups ({self.in_groups}), "
                f"outputs into {self.out_groups.groups} ({self.out_groups}); they must be as many"
            )
        object.__setattr__(self, "packing", cheapest_packing(self.in_groups.sizes, self.out_groups.sizes))

    @property
    def groups(self) -> int:
        """Number of groups."""
        return self.in_groups.groups

    @property
    def is_uniform(self) -> bool:
        """Whether ``nn.Conv2d(groups=G)`` computes the same function."""
        return self.in_groups.is_uniform and self.out_groups.is_uniform

    @property
    def links(self) -> tuple[int, ...]:
        """Connected channel pairs of each group."""
        return tuple(i * o for i, o in zip(self.in_groups.sizes, self.out_groups.sizes, strict=True))

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the one weight tensor: (O, C/G, Kh, Kw) where uniform, else (L, Kh, Kw), group after group."""
        if self.is_uniform:
            return (self.out_groups.channels, self.in_groups.sizes[0], *self.kernel_size)
        return (sum(self.links), *self.kernel_size)

    def group_weights(self, weight: Tensor) -> list[Tensor]:
        """Views of ``weight``, one of shape (O_g, C_g, Kh, Kw) per group."""
        if self.is_uniform:
            return list(weight.split(self.out_groups.sizes[0]))
        return [
            part.view(out_size, in_size, *self.kernel_size)
            for part, in_size, out_size in zip(
                weight.split(list(self.links)), self.in_groups.sizes, self.out_groups.sizes, strict=True
            )
        ]
