"""k networks of one architecture as one network with k times the channels.

Every layer becomes an ordinary layer of k times the channels that keeps the networks separate: a convolution in g
groups becomes one in k · g groups, a batch normalisation one of k · C channels. Tensors are (N, k · C, …), network
after network. No step copies anything: parameters and buffers of the networks become slices, along their first
dimension, of those of the wide network.

The same by ``torch.func.stack_module_state`` and ``torch.vmap`` costs the host 2.7 times the calls of one network and
batch normalisation three more passes over its tensors, since vmap has no rule that normalises and scales at once; on
one busy thread of a Xeon it trained four log-groups networks at 0.4 of the pace of one after the other.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from gconv import ChannelPermutation, ChannelShuffle, GroupedConv2d
from gconv.kernels.decomposition import is_tap_by_tap
from gconv.partition import Partition


class WideNetwork(nn.Module):
    """k networks as one, in training.

    Its parameters are in the order of those of each network, so that optimizers number them alike.

    Args:
        networks: at least one, of one architecture and on one device; they become views of this one.

    Raises:
        ValueError: networks that cannot be computed so (``refusal``).
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        graph, first, count = _graph(networks[0]), networks[0], len(networks)
        self.count = count
        self.layers = copy.deepcopy(first)
        for name in _layers_in(graph):
            layers = [network.get_submodule(name) for network in networks]
            with torch.device("meta"):
                wide = RULES[type(layers[0])](layers[0], count)
            _share(wide, layers)
            self.layers.set_submodule(name, wide)
        for node in graph.nodes:
            if node.target is torch.cat:
                node.target, node.args = _join, (node.args[0], count)
        # Not a submodule, since it holds the same layers in another order.
        self._compute = (fx.GraphModule(self.layers, graph),)

    def forward(self, xs: Sequence[Tensor]) -> Tensor:
        """A batch (N, 3, h, w) for each network to their outputs (k, N, classes)."""
        return self._compute[0](torch.cat(list(xs), 1)).unflatten(1, (self.count, -1)).transpose(0, 1)


def refusal(network: nn.Module) -> str | None:
    """Return why a network cannot be part of a wide network, in words; None if it can."""
    try:
        _graph(network)
    except ValueError as error:
        return str(error)
    return None


def _graph(network: nn.Module) -> fx.Graph:
    """Return the graph of a network, layer by layer.

    Raises:
        ValueError: something in it has no rule.
    """
    try:
        graph = _Tracer().trace(network)
    except (TraceError, TypeError) as error:
        raise ValueError(f"what it computes depends on its input ({str(error).splitlines()[0]})") from None
    for node in graph.nodes:
        if node.op == "call_module":
            layer = network.get_submodule(str(node.target))
            if reason := _refusal_of(layer):
                raise ValueError(f"its layer {node.target} ({type(layer).__name__}) {reason}")
        elif node.op == "call_function" and node.target in (operator.add, torch.cat):
            joins = node.target is torch.cat
            if joins and (*node.args[1:], *node.kwargs.values()) != (1,):
                raise ValueError(f"it joins tensors as in {node.format_node()}, where channels alone can be joined")
            if not joins and not all(isinstance(argument, fx.Node) for argument in node.args):
                raise ValueError(f"it computes {node.format_node()}, which has no rule for several networks at once")
        elif node.op not in ("placeholder", "output"):
            raise ValueError(f"it computes {node.target}, which has no rule for several networks at once")
    return graph


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m) in RULES or super().is_leaf_module(m, module_qualified_name)


def _layers_in(graph: fx.Graph) -> list[str]:
    """Return the names of the layers, each once."""
    return list(dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "call_module"))


def _refusal_of(layer: nn.Module) -> str | None:
    if type(layer) not in RULES:
        return "has no rule for several networks at once"
    if isinstance(layer, nn.Dropout) and layer.p > 0:
        return f"draws from random numbers that all networks share: p={layer.p}"
    if isinstance(layer, GroupedConv2d) and not isinstance(layer.padding, tuple):
        return f"pads by a rule of its own: padding={layer.padding}"
    if isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) != (1, -1):
        return "flattens other dimensions than those behind the batch"
    return None


def _share(wide: nn.Module, layers: Sequence[nn.Module]) -> None:
    """Join the parameters and buffers of the layers in a wide layer; those of the layers become slices of them."""

    def joined(parts: list[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        if parts[0].dim() == 0:  # a count of batches, the same for all
            whole = parts[0].clone()
            return whole, [whole] * len(parts)
        if is_tap_by_tap(parts[0]):
            whole = torch.cat([part.movedim(0, -1) for part in parts], -1).movedim(-1, 0)
        else:
            whole = torch.cat(parts)
        return whole, whole.chunk(len(parts))

    for name, parameter in layers[0].named_parameters(recurse=False):
        whole, slices = joined([layer.get_parameter(name).detach() for layer in layers])
        setattr(wide, name, nn.Parameter(whole, parameter.requires_grad))
        for layer, part in zip(layers, slices, strict=True):
            layer.get_parameter(name).data = part
    for name, _ in layers[0].named_buffers(recurse=False):
        whole, slices = joined([layer.get_buffer(name) for layer in layers])
        setattr(wide, name, whole)
        for layer, part in zip(layers, slices, strict=True):
            setattr(layer, name, part)


def _join(parts: Sequence[Tensor], count: int) -> Tensor:
    """Apply ``torch.cat(parts, 1)`` to each network; the memory format is kept."""
    last = [part.movedim(1, -1).unflatten(-1, (count, -1)) for part in parts]
    return torch.cat(last, -1).flatten(-2).movedim(-1, 1)


def _grouped_conv(conv: GroupedConv2d, count: int) -> nn.Module:
    cuts = [Partition(cut.sizes * count) for cut in (conv.geometry.in_groups, conv.geometry.out_groups)]
    window: Any = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    channels = cuts[0].channels, cuts[1].channels
    named = {"bias": conv.bias is not None, "padding_mode": conv.padding_mode}
    return GroupedConv2d(*channels, *window, groups=cuts[1], in_groups=cuts[0], **named)


def _conv(conv: nn.Conv2d, count: int) -> nn.Module:
    """Return k dense convolutions as one grouped convolution, for which a kernel is chosen as for any other."""
    named: Any = {
        name: getattr(conv, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    }
    channels = count * conv.in_channels, count * conv.out_channels
    return GroupedConv2d(*channels, groups=count * conv.groups, bias=conv.bias is not None, **named)


def _norm(norm: nn.BatchNorm2d, count: int) -> nn.Module:
    return nn.BatchNorm2d(count * norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)


class _Linear(nn.Module):
    """k linear layers: (N, k · C) to (N, k · O)."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, _linear: nn.Linear, count: int) -> None:
        super().__init__()
        self.count = count
        self.register_parameter("weight", None)
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        x_KNC = x.unflatten(1, (self.count, -1)).transpose(0, 1)
        weight_KCO = self.weight.unflatten(0, (self.count, -1)).transpose(1, 2)
        if self.bias is None:
            y_KNO = torch.bmm(x_KNC, weight_KCO)
        else:
            y_KNO = torch.baddbmm(self.bias.unflatten(0, (self.count, 1, -1)), x_KNC, weight_KCO)
        return y_KNO.transpose(0, 1).flatten(1)


class _LocalNorm(nn.Module):
    """Local response normalisation over neighbouring channels of one network, not of the next."""

    def __init__(self, norm: nn.LocalResponseNorm, count: int) -> None:
        super().__init__()
        self.count, self.norm = count, norm

    def forward(self, x_NCHW: Tensor) -> Tensor:
        batch = x_NCHW.shape[0]
        separate = x_NCHW.unflatten(1, (self.count, -1)).flatten(0, 1)
        return self.norm(separate).unflatten(0, (batch, self.count)).flatten(1, 2)


class _Permutation(nn.Module):
    """Permutation of channels within each network."""

    order: Tensor
    first: Tensor

    def __init__(self, permutation: ChannelPermutation | ChannelShuffle, count: int) -> None:
        super().__init__()
        order = permutation.order
        assert order is not None
        channels = len(order)
        first = torch.arange(count, device=order.device).repeat_interleave(channels) * channels
        self.register_buffer("first", first, persistent=False)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW.index_select(1, self.order + self.first)


class _UniformShuffle(nn.Module):
    """The published channel shuffle within each network."""

    def __init__(self, groups: int, count: int) -> None:
        super().__init__()
        self.count, self.groups = count, groups

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW.unflatten(1, (self.count, self.groups, -1)).transpose(2, 3).flatten(1, 3)


def _shuffle(shuffle: ChannelShuffle, count: int) -> nn.Module:
    if shuffle.order is None:
        return _UniformShuffle(shuffle.partition.groups, count)
    return _Permutation(shuffle, count)


def _unchanged(layer: nn.Module, _count: int) -> nn.Module:
    """Return a layer that treats every channel alike."""
    return layer


RULES: dict[type[nn.Module], Callable[[Any, int], nn.Module]] = {
    GroupedConv2d: _grouped_conv,
    nn.Conv2d: _conv,
    nn.BatchNorm2d: _norm,
    nn.Linear: _Linear,
    nn.LocalResponseNorm: _LocalNorm,
    ChannelPermutation: _Permutation,
    ChannelShuffle: _shuffle,
    **dict.fromkeys(
        (nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Identity, nn.Dropout), _unchanged
    ),
}
