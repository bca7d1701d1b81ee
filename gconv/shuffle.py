"""Channel shuffle (Zhang et al. 2018, ShuffleNet), for groups of any sizes.

With equal groups it is the published one: view (G, C/G), transpose, flatten. For unequal ones every channel is placed
by its relative position inside its group, (j + 1/2) / size, ties in group order; equal groups are the special case. So
any run of neighbouring outputs sees every group in proportion to its size, and whoever cuts them next reads from all.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from gconv.operator.fx import leaf
from gconv.partition import Partition, Spec


@lru_cache(maxsize=1024)
def shuffle_order(partition: Partition) -> tuple[int, ...]:
    """Which input channel each output channel takes: ``(0, 2, 1, 3)`` for two groups of two."""
    places = [(Fraction(2 * j + 1, size), g) for g, size in enumerate(partition.sizes) for j in range(size)]
    return tuple(sorted(range(partition.channels), key=places.__getitem__))


def channel_shuffle(x_NCHW: Tensor, groups: Spec) -> Tensor:
    """Interleave the groups' channels.

    Args:
        x_NCHW: (N, C, H, W).
        groups: how the C channels are cut: a Partition, or what ``Partition.of`` reads (``4``, ``"log:3"``).

    Raises:
        ValueError: the input does not have the channels that the partition cuts.
    """
    if isinstance(x_NCHW, Proxy):
        spec = ",".join(map(str, groups.sizes)) if isinstance(groups, Partition) else groups
        return x_NCHW.tracer.create_proxy("call_function", channel_shuffle, (x_NCHW, spec), {})  # type: ignore
    if not isinstance(x_NCHW, Tensor):
        raise TypeError(f"{type(x_NCHW).__name__}: channel_shuffle takes a tensor (N, C, H, W)")
    channels = x_NCHW.shape[1]
    if isinstance(groups, Partition) and groups.channels != channels:
        raise ValueError(f"input has {channels} channels; the groups {groups} cut {groups.channels}")
    partition = Partition.of(groups, channels)
    if partition.is_uniform:
        return x_NCHW.unflatten(1, (partition.groups, partition.sizes[0])).transpose(1, 2).flatten(1, 2)
    return x_NCHW.index_select(1, torch.tensor(shuffle_order(partition), device=x_NCHW.device))


class ChannelPermutation(nn.Module):
    """Puts the channels in another, fixed order, which is part of the ``state_dict``.

    Args:
        order: which input channel each output channel takes, (C,).

    Raises:
        ValueError: ``order`` is no permutation.
    """

    order: Tensor

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        if sorted(order) != list(range(len(order))):
            raise ValueError(f"order {list(order)}: must name every channel from 0 to {len(order) - 1} once")
        # On the CPU even where everything else is built on the meta device: the order is wiring, not a number.
        self.register_buffer("order", torch.tensor(list(order), device="cpu"))

    @classmethod
    def random(cls, channels: int) -> ChannelPermutation:
        """A random order, drawn from torch's seed."""
        return cls(torch.randperm(channels, device="cpu").tolist())

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        return x_NCHW.index_select(1, self.order.to(x_NCHW.device))

    def extra_repr(self) -> str:
        """What ``print(layer)`` shows."""
        return f"{len(self.order)}"


class ChannelShuffle(nn.Module):
    """``channel_shuffle`` as a layer, its order kept on the device; ``nn.ChannelShuffle`` for groups of any sizes."""

    order: Tensor | None

    def __init__(self, partition: Partition) -> None:
        super().__init__()
        if not isinstance(partition, Partition):
            raise TypeError(
                f"ChannelShuffle takes a Partition, which knows its channels, not {partition!r}; write "
                f"ChannelShuffle(Partition.of({partition!r}, channels)), or nn.ChannelShuffle for equal groups"
            )
        self.partition = partition
        order = None if partition.is_uniform else torch.tensor(shuffle_order(partition), device="cpu")
        self.register_buffer("order", order, persistent=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        if isinstance(x_NCHW, Proxy) and (named := leaf(self, x_NCHW)) is not None:
            return named
        if self.order is None:
            return channel_shuffle(x_NCHW, self.partition)
        return x_NCHW.index_select(1, self.order.to(x_NCHW.device))

    def extra_repr(self) -> str:
        """What ``print(layer)`` shows."""
        return f"{self.partition.channels}, groups={self.partition}"

    def __prepare_scriptable__(self) -> nn.Module:
        """Give ``torch.jit.script`` a layer that it can read."""
        if self.order is None:
            return nn.ChannelShuffle(self.partition.groups)
        return ChannelPermutation(self.order.tolist())
