"""Channel shuffle (Zhang et al. 2018, ShuffleNet), for groups of any sizes.

With equal groups it is the published shuffle: view (G, C/G), transpose, flatten. With unequal groups the channels are
sorted by their relative position inside their group, (j + 1/2) / size, and ties by group. For equal groups this gives
the published order. So any range of neighbouring outputs has channels of every group in proportion to its size, and
each group of the next layer reads from all groups.

As in ``nn.ChannelShuffle``, inputs are (N, C, …): dimension 1 has the channels. So an image without a batch, (C, H, W),
is taken for (N, C, L): give it a batch first, ``image[None]``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from gconv.operator.fx import leaf
from gconv.partition import Partition, Spec


@lru_cache(maxsize=1024)
def shuffle_order(partition: Partition) -> tuple[int, ...]:
    """Return the input channel of each output channel: ``(0, 2, 1, 3)`` for two groups of two."""
    places = [(Fraction(2 * j + 1, size), g) for g, size in enumerate(partition.sizes) for j in range(size)]
    return tuple(sorted(range(partition.channels), key=places.__getitem__))


def channel_shuffle(x_NCHW: Tensor, groups: Spec) -> Tensor:
    """Interleave the channels of the groups.

    Args:
        x_NCHW: (N, C, H, W), or any other (N, C, …); never (C, H, W), whose rows would be shuffled.
        groups: partition of the C channels, or anything that ``Partition.of`` reads (``4``, ``"log:3"``).

    Raises:
        ValueError: the input and the partition have different numbers of channels.
    """
    if isinstance(x_NCHW, Proxy):
        spec = ",".join(map(str, groups.sizes)) if isinstance(groups, Partition) else groups
        return x_NCHW.tracer.create_proxy("call_function", channel_shuffle, (x_NCHW, spec), {})  # type: ignore
    if not isinstance(x_NCHW, Tensor):
        raise TypeError(f"{type(x_NCHW).__name__}: channel_shuffle takes a tensor (N, C, …)")
    partition = groups if isinstance(groups, Partition) else Partition.of(groups, _channels(x_NCHW))
    _check_channels(x_NCHW, partition.channels, f"the groups {partition} cut")
    if partition.is_uniform:
        return x_NCHW.unflatten(1, (partition.groups, partition.sizes[0])).transpose(1, 2).flatten(1, 2)
    return x_NCHW.index_select(1, torch.tensor(shuffle_order(partition), device=x_NCHW.device))


def _channels(x_NCHW: Tensor) -> int:
    if x_NCHW.dim() < 2:
        raise ValueError(f"input of shape {tuple(x_NCHW.shape)}: must be (N, C, …)")
    return x_NCHW.shape[1]


def _check_channels(x_NCHW: Tensor, channels: int, reader: str) -> None:
    if (given := _channels(x_NCHW)) != channels:
        is_image = x_NCHW.dim() == 3 and x_NCHW.shape[0] == channels
        remedy = f"; input of shape {tuple(x_NCHW.shape)} has no batch: give x[None]" if is_image else ""
        raise ValueError(f"input has {given} channels; {reader} {channels}{remedy}")


class ChannelPermutation(nn.Module):
    """Reorder the channels by a fixed permutation, which is part of the ``state_dict``.

    Args:
        order: input channel of each output channel, (C,).

    Raises:
        ValueError: ``order`` is no permutation.
    """

    order: Tensor

    def __init__(self, order: Sequence[int]) -> None:
        super().__init__()
        if sorted(order) != list(range(len(order))):
            raise ValueError(f"order {list(order)}: must name every channel from 0 to {len(order) - 1} once")
        # On the CPU even if the model is built on the meta device: tracing the wiring needs the order.
        self.register_buffer("order", torch.tensor(list(order), device="cpu"))

    @classmethod
    def random(cls, channels: int) -> ChannelPermutation:
        """Return a random permutation, drawn with torch's global generator."""
        return cls(torch.randperm(channels, device="cpu").tolist())

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Map (N, C, …) to (N, C, …); raises ValueError for another number of channels."""
        if not isinstance(x_NCHW, Proxy):
            _check_channels(x_NCHW, len(self.order), "the permutation orders")
        return x_NCHW.index_select(1, self.order.to(x_NCHW.device))

    def extra_repr(self) -> str:
        """Return the text in the parentheses of ``print(layer)``."""
        return f"{len(self.order)}"


class ChannelShuffle(nn.Module):
    """Channel shuffle as a layer: ``nn.ChannelShuffle`` for groups of any sizes."""

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
        """Map (N, C, …) to (N, C, …); raises ValueError for another number of channels."""
        if isinstance(x_NCHW, Proxy) and (named := leaf(self, x_NCHW)) is not None:
            return named
        if self.order is None:
            return channel_shuffle(x_NCHW, self.partition)
        if not isinstance(x_NCHW, Proxy):
            _check_channels(x_NCHW, self.partition.channels, f"the groups {self.partition} cut")
        return x_NCHW.index_select(1, self.order.to(x_NCHW.device))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ChannelShuffle:
        super()._apply(fn, recurse)
        if self.order is not None:  # ``to_empty`` leaves a buffer without values, and so does the meta device
            device = "cpu" if self.order.is_meta else self.order.device
            self.order = torch.tensor(shuffle_order(self.partition), device=device)
        return self

    def extra_repr(self) -> str:
        """Return the text in the parentheses of ``print(layer)``."""
        return f"{self.partition.channels}, groups={self.partition}"

    def __prepare_scriptable__(self) -> nn.Module:
        """Give ``torch.jit.script`` a layer that it can read."""
        if self.order is None:
            return nn.ChannelShuffle(self.partition.groups)
        return ChannelPermutation(self.order.tolist())
