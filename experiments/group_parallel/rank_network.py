"""A network of which each rank of a process group holds its own filters: model parallelism by filter groups.

``gconv.placement`` plans the owner of each filter and the messages; this module carries the plan out. Tensors go
from rank to rank as they are, in pairs of plain sends and receives, since shares may differ in size and be anywhere
among the channels: neither an all-gather of equal pieces nor DTensor's even blocks of one dimension fits them.

Legend: N batch, C channels, F features.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from gconv import GroupedConv2d, Partition
from gconv.kernels.geometry import Geometry
from gconv.placement import Move, Owners, Plan


@contextmanager
def count_sent_bytes() -> Iterator[Counter[int]]:
    """Count the bytes that this rank hands to torch.distributed for others in the meantime, by their tags."""
    sent, original = Counter(), dist.batch_isend_irecv

    def counting(p2p_op_list: list[dist.P2POp]) -> list[dist.Work]:
        for operation in p2p_op_list:
            if operation.op is dist.isend:
                sent[operation.tag] += operation.tensor.nbytes
        return original(p2p_op_list)

    dist.batch_isend_irecv = counting
    try:
        yield sent
    finally:
        dist.batch_isend_irecv = original


def exchange_tensors(
    sent: Mapping[int, Tensor], received: Mapping[int, Tensor], group: dist.ProcessGroup | None, tag: int
) -> None:
    """Send a tensor to each other rank and receive one from each, all at once.

    Args:
        sent: contiguous, by the rank it goes to.
        received: contiguous, by the rank it comes from; filled.
        group: of whose ranks they are; None for all.
        tag: a number that distinguishes messages.
    """
    operations = [
        dist.P2POp(call, tensor, group=group, tag=tag, group_peer=rank)
        for call, tensors in ((dist.isend, sent), (dist.irecv, received))
        for rank, tensor in tensors.items()
        if tensor.numel()
    ]
    for work in dist.batch_isend_irecv(operations) if operations else ():
        work.wait()


class Redistribution(nn.Module):
    """Brings a tensor to where the next operation needs it: gathers it, or keeps the rank's own channels, or both."""

    def __init__(self, move: Move, number: int, rank: int, group: dist.ProcessGroup | None) -> None:
        super().__init__()
        self.number, self.rank, self.group = number, rank, group
        self.returned = move.exchange is not None and move.exchange.returned
        owners = move.exchange.owners if move.exchange is not None else ()
        self.gathered = {r: _place(owners, r) for r in sorted(set(owners))}
        self.channels = len(owners)
        self.kept = None if move.kept is None else _place(move.kept, rank)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_own, …) or (N, C, …) to (N, C, …) or (N, C_own, …)."""
        if self.gathered:
            x = _Gather.apply(x, self)  # type: ignore[assignment]
        return x if self.kept is None else x.index_select(1, self.kept.to(x.device))

    def extra_repr(self) -> str:
        """Return the text in ``print``."""
        kept = "" if self.kept is None else f"{len(self.kept)} kept"
        return ", ".join(filter(None, [f"{self.channels} gathered" if self.channels else "", kept]))


class _Gather(torch.autograd.Function):
    """The whole of a tensor from the ranks' channels; backwards the sum of all ranks' gradients of the own ones."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, redistribution: Redistribution) -> Tensor:
        ctx.redistribution = redistribution
        others = {r: place for r, place in redistribution.gathered.items() if r != redistribution.rank}
        x = x.contiguous()
        parts = {r: x.new_empty(len(x), len(place), *x.shape[2:]) for r, place in others.items()}
        exchange_tensors(dict.fromkeys(others, x), parts, redistribution.group, redistribution.number)
        whole = x.new_empty(len(x), redistribution.channels, *x.shape[2:])
        for r, place in redistribution.gathered.items():
            whole[:, place.to(x.device)] = parts.pop(r) if r in parts else x
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,), redistribution = gradients, ctx.redistribution

        def of(rank: int) -> Tensor:
            return gradient.index_select(1, redistribution.gathered[rank].to(gradient.device))

        own = of(redistribution.rank)
        if not redistribution.returned:  # the loss: its gradient is the same on every rank
            return own, None
        others = [r for r in redistribution.gathered if r != redistribution.rank]
        parts = {r: torch.empty_like(own) for r in others}
        exchange_tensors({r: of(r) for r in others}, parts, redistribution.group, redistribution.number)
        total = torch.zeros_like(own)
        for r in redistribution.gathered:  # in the order of the ranks, so that sums are repeatable
            total += parts.get(r, own)
        return total, None


class PlacedDropout(nn.Module):
    """Dropout with the mask of the whole layer on one device, if all ranks draw from the same seed."""

    def __init__(self, whole: _DropoutNd, owners: Owners, rank: int) -> None:
        super().__init__()
        self.whole, self.channels = whole, len(owners)
        self.place = _place(owners, rank)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_own, …) to the same shape."""
        if not self.training:
            return x
        kept = self.whole(torch.ones(len(x), self.channels, *x.shape[2:], device=x.device, dtype=x.dtype))
        return x * kept.index_select(1, self.place.to(x.device))


def rank_network(model: nn.Module, plan: Plan, rank: int, group: dist.ProcessGroup | None = None) -> nn.Module:
    """Return the part of a network that one rank holds: a module from whole images to whole outputs.

    All ranks must call it together, with the same images; its loss must be computed on all of them. Its parameters are
    the rank's own filters, under the names that they have in the network.

    Args:
        model: the network, with its values. It is not changed.
        plan: of the network.
        rank: in ``group``, which has as many ranks as the plan.
        group: all ranks by default.
    """
    if plan.placement.ranks == 1:
        return copy.deepcopy(model)
    graph, parts = fx.Graph(), {}
    numbers = {key: number for number, key in enumerate(plan.moves)}
    values: dict[fx.Node, fx.Node] = {}
    for node in plan.graph.nodes:
        if node.op == "call_module" and node.target not in parts:
            layer = model.get_submodule(node.target)
            owners = plan.placement.owners.get(node.target, plan.owners[node.name])
            parts[node.target] = _own_layer(layer, owners, rank).train(layer.training)

        def redistribution(source: fx.Node, node: fx.Node = node) -> fx.Node:
            if (node.name, source.name) not in plan.moves:
                return values[source]
            name, key = f"{source.name}_for_{node.name}", (node.name, source.name)
            parts[name] = Redistribution(plan.moves[key], numbers[key], rank, group)
            return graph.call_module(name, (values[source],))

        values[node] = graph.node_copy(node, redistribution)
    module = fx.GraphModule(parts, graph, type(model).__name__)
    module.training = model.training
    module.load_state_dict(rank_values(model, plan, model.state_dict(), rank), assign=True)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(model.get_parameter(name).requires_grad)
    return module


def rank_values(model: nn.Module, plan: Plan, values: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """Return a copy of the values that one rank holds, by the names of the network's parameters and buffers.

    Args:
        model: the network.
        plan: of the network.
        values: ``model.state_dict()``, or gradients by the names of their parameters.
        rank: whose.
    """
    nodes = {node.target: node.name for node in plan.graph.nodes if node.op == "call_module"}
    own = {}
    for name, value in values.items():
        path, _, leaf = name.rpartition(".")
        layer, value = model.get_submodule(path), value.detach()
        owners = plan.placement.owners.get(path, plan.owners.get(nodes.get(path, "")))
        if plan.placement.ranks == 1 or owners is None or value.dim() == 0:
            own[name] = value.clone()
        elif isinstance(layer, GroupedConv2d) and leaf == "weight":
            geometry, pieces = _own_geometry(layer, owners, rank), layer.geometry.group_weights(value)
            if layer.groups == 1:
                pieces = [pieces[0][_place(owners, rank)]]
            else:
                pieces = [pieces[group] for group in _own_groups(layer, owners, rank)]
            own[name] = torch.cat([w.flatten(0, 1) for w in pieces]).view(geometry.weight_shape)
        else:
            own[name] = value[_place(owners, rank)]
    return own


def _own_layer(layer: nn.Module, owners: Owners | None, rank: int) -> nn.Module:
    """Return a layer cut to the outputs of one rank, without values yet."""
    if isinstance(layer, _DropoutNd) and owners is not None:
        return PlacedDropout(layer, owners, rank)
    if owners is None or not isinstance(layer, GroupedConv2d | nn.Conv2d | nn.Linear | _BatchNorm):
        return copy.deepcopy(layer)
    count, bias = owners.count(rank), getattr(layer, "bias", None) is not None
    space: Any = [getattr(layer, name, None) for name in ("kernel_size", "stride", "padding", "dilation")]
    rest: Any = {"bias": bias, "padding_mode": getattr(layer, "padding_mode", None)}
    with torch.device("meta"):
        if isinstance(layer, GroupedConv2d):
            cut = _own_geometry(layer, owners, rank)
            inputs, outputs = cut.in_groups, cut.out_groups
            return GroupedConv2d(inputs.channels, count, *space, groups=outputs, in_groups=inputs, **rest)
        if isinstance(layer, nn.Conv2d):
            groups = layer.groups * count // layer.out_channels if layer.groups > 1 else 1
            return nn.Conv2d(layer.in_channels // layer.groups * groups, count, *space, groups=groups, **rest)
        if isinstance(layer, nn.Linear):
            return nn.Linear(layer.in_features, count, bias)
        assert isinstance(layer, _BatchNorm)
        return type(layer)(count, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)


def _own_geometry(layer: GroupedConv2d, owners: Owners, rank: int) -> Geometry:
    """Return a convolution's geometry on one rank: whole groups, or some filters of a dense one."""
    whole = layer.geometry
    if layer.groups == 1:
        return replace(whole, out_groups=Partition((owners.count(rank),)))
    held = _own_groups(layer, owners, rank)
    inputs, outputs = (Partition(tuple(cut.sizes[g] for g in held)) for cut in (whole.in_groups, whole.out_groups))
    return replace(whole, in_groups=inputs, out_groups=outputs)


def _own_groups(layer: GroupedConv2d, owners: Owners, rank: int) -> list[int]:
    return [group for group, start in enumerate(layer.geometry.out_groups.starts) if owners[start] == rank]


def _place(owners: Owners, rank: int) -> Tensor:
    """Return the channels of one rank."""
    return torch.tensor([channel for channel, owner in enumerate(owners) if owner == rank])
