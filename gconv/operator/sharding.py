"""Sharding rules of the ops for distributed tensors: batches may be sharded, weights are replicated."""

from __future__ import annotations

from functools import cache

from torch import Tensor

from gconv.operator.library import ops


def is_distributed(tensor: Tensor) -> bool:
    """Return True for a DTensor, without importing ``torch.distributed.tensor``."""
    return type(tensor).__name__ == "DTensor"


@cache
def register_sharding_rules() -> None:
    """Register once how the ops may be sharded, so that each device computes its part with any kernel."""
    from torch.distributed.tensor import Partial, Replicate, Shard
    from torch.distributed.tensor.experimental import register_sharding

    whole, batch, summed = Replicate(), Shard(0), Partial()

    @register_sharding(ops.conv2d.default)
    def _conv2d(x: object, weight: object, bias: object, *rest: object) -> list:
        b = None if bias is None else whole
        rest_ = [None] * len(rest)
        return [([whole], [whole, whole, b, *rest_]), ([batch], [batch, whole, b, *rest_])]

    @register_sharding(ops.input_gradient.default)
    def _input_gradient(dy: object, weight: object, *rest: object) -> list:
        rest_ = [None] * len(rest)
        return [([whole], [whole, whole, *rest_]), ([batch], [batch, whole, *rest_])]

    @register_sharding(ops.weight_gradient.default)
    def _weight_gradient(dy: object, x: object, *rest: object) -> list:
        rest_ = [None] * len(rest)
        return [([whole], [whole, whole, *rest_]), ([summed], [batch, batch, *rest_])]
