"""Which filters feed which group, traced through a whole model.

"The group of a filter" is not always the group that computes it: AlexNet's conv1 is not grouped, its filters belong to
the group of conv2 that *reads* them. The model is traced once (torch.fx) and run on the meta device beside a shadow: an
integer tensor of the same shape that holds, for each element, which filters it comes from. Operations that move
elements (view, transpose, cat, slicing, shuffle) move the shadow by the very same call; those that keep channels apart
(norm, activation, pooling) spread it over their output; sums unite.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from gconv.conv import GroupedConv2d
from gconv.partition import Partition
from gconv.shuffle import ChannelPermutation, ChannelShuffle, channel_shuffle

Filter = tuple[str, int]  # convolution, output channel


@dataclass
class LayerWiring:
    """The wiring of one convolution.

    Attributes:
        name: of the module.
        computed_by: group that computes each filter.
        read_by: for each convolution that reads any of the filters, the set of its groups that read each filter.
        sources: the filters that each input channel comes from; empty where it comes from the network's input.
    """

    name: str
    computed_by: tuple[int, ...]
    sources: tuple[frozenset[Filter], ...]
    read_by: dict[str, list[frozenset[int]]] = field(default_factory=dict)

    def reading_groups(self, reader: str | None = None) -> list[int | None]:
        """The group that reads each filter; None where several groups read it, or none does.

        Args:
            reader: which convolution reads; by default the first that cuts its inputs into several groups, else the
                first at all.

        Raises:
            KeyError: ``reader`` reads none of the filters.
        """
        if not self.read_by:
            return [None] * len(self.computed_by)
        reader = reader or self.first_reader()
        assert reader is not None
        return [next(iter(groups)) if len(groups) == 1 else None for groups in self.read_by[reader]]

    def first_reader(self) -> str | None:
        """The first convolution in which more than one group reads these filters, else the first reader, if any."""
        for reader, groups in self.read_by.items():
            if len(frozenset().union(*groups)) > 1:
                return reader
        return next(iter(self.read_by), None)


def trace_wiring(model: nn.Module, input_shape: tuple[int, ...]) -> dict[str, LayerWiring]:
    """Trace which group computes and which group reads every filter of every convolution.

    Args:
        model: any module that torch.fx can trace.
        input_shape: of one image, (C, H, W).

    Returns:
        The wiring of each convolution, by module name, in the order of computation.

    Raises:
        ValueError: the model cannot be traced, or an operation does not tell where its channels come from.
    """
    try:
        graph = _Tracer().trace(model)
    except (TraceError, TypeError, NameError) as error:
        raise ValueError(f"{type(model).__name__} cannot be traced by torch.fx: {error}") from None
    shadow = _ShadowInterpreter(fx.GraphModule(model, graph))
    image = _Shadowed(torch.empty(1, *input_shape, device="meta"), torch.zeros(1, *input_shape, dtype=torch.long))
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        shadow.run(image)
    finally:
        for module, was_training in training.items():
            module.training = was_training
    return shadow.layers


class _Tracer(fx.Tracer):
    def __init__(self) -> None:
        super().__init__(autowrap_functions=(channel_shuffle,))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, GroupedConv2d | ChannelShuffle | ChannelPermutation) or super().is_leaf_module(
            m, module_qualified_name
        )


@dataclass
class _Shadowed:
    """A tensor on the meta device and, for each element, the number of the set of filters that it comes from."""

    value: Tensor
    origin: Tensor


# What keeps every channel apart and changes at most the spatial size.
CHANNELWISE_MODULES = (
    nn.BatchNorm2d,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.SiLU,
    nn.GELU,
    nn.Sigmoid,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Tanh,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Upsample,
    nn.LocalResponseNorm,  # reads five neighbours, but only to scale
)
CHANNELWISE = {
    *(F.relu, F.relu6, F.leaky_relu, F.silu, F.gelu, F.hardswish, F.dropout, F.sigmoid, torch.relu, torch.sigmoid),
    *(F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate, F.batch_norm),
    *("relu", "relu_", "sigmoid", "contiguous", "clone", "float", "to"),
}
MOVES = {
    channel_shuffle,
    *(torch.flatten, torch.reshape, torch.transpose, torch.permute, torch.split, torch.chunk, operator.getitem),
    *("view", "reshape", "flatten", "unflatten", "transpose", "permute", "split", "chunk", "squeeze", "unsqueeze"),
}
UNITES = {torch.add, operator.add, operator.iadd, torch.mul, operator.mul, operator.imul, "add", "add_", "mul", "mul_"}


class _ShadowInterpreter(fx.Interpreter):
    """Runs the graph on shadowed tensors and notes every convolution that it passes."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.layers: dict[str, LayerWiring] = {}
        self._sets: list[frozenset[Filter]] = [frozenset()]
        self._numbers: dict[frozenset[Filter], int] = {frozenset(): 0}

    def _number(self, filters: frozenset[Filter]) -> int:
        if filters not in self._numbers:
            self._numbers[filters] = len(self._sets)
            self._sets.append(filters)
        return self._numbers[filters]

    def call_module(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        x = args[0]
        if isinstance(module, nn.Conv2d | GroupedConv2d):
            return self._convolve(target, module, x)
        if isinstance(module, CHANNELWISE_MODULES):
            return self._spread(x, _on_meta(module, x.value))
        if isinstance(module, nn.Flatten | nn.ChannelShuffle | ChannelShuffle | ChannelPermutation):
            return _Shadowed(module(x.value), module(x.origin))
        if isinstance(module, nn.Linear):
            return self._mix(x, _on_meta(module, x.value))
        raise ValueError(f"{target}: {type(module).__name__} does not tell where its channels come from")

    def call_function(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        return self._call(target, target, target.__name__, args, kwargs)

    def call_method(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        def method(x: Any, *rest: Any, **named: Any) -> Any:
            name = "reshape" if target == "view" else target  # a spread shadow has strides that no view can take
            return getattr(x, name)(*rest, **named)

        return self._call(target, method, target, args, kwargs)

    def _call(self, key: Any, function: Callable, name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, _Shadowed)]
        values, origins = _parts(args, "value"), _parts(args, "origin")
        unwrapped = {key: _parts(value, "value") for key, value in kwargs.items()}
        if key in (torch.cat, torch.concat):
            return _Shadowed(function(*values, **kwargs), function(*origins, **kwargs))
        if not tensors:
            return function(*args, **kwargs)
        if key in ("size", "dim", getattr):
            return function(*values, **unwrapped)
        if key in MOVES:
            value, origin = function(*values, **kwargs), function(*origins, **kwargs)
            if isinstance(value, Tensor):
                return _Shadowed(value, origin)
            return [_Shadowed(v, o) for v, o in zip(value, origin, strict=True)]
        value = function(*values, **unwrapped)
        if key in CHANNELWISE:
            return self._spread(tensors[0], value)
        if key in UNITES:
            return self._unite(tensors, value)
        if key in (torch.mean, "mean") and value.shape[:2] == tensors[0].value.shape[:2]:
            return self._spread(tensors[0], value)
        raise ValueError(f"{name}: this operation does not tell where its channels come from")

    def _convolve(self, name: str, module: nn.Conv2d | GroupedConv2d, x: _Shadowed) -> _Shadowed:
        if isinstance(module, GroupedConv2d):
            in_groups, out_groups = module.geometry.in_groups, module.geometry.out_groups
        else:
            in_groups = Partition.uniform(module.in_channels, module.groups)
            out_groups = Partition.uniform(module.out_channels, module.groups)
        sources = tuple(
            frozenset().union(*(self._sets[number] for number in channel.unique().tolist()))
            for channel in x.origin[0].flatten(1)
        )
        if name in self.layers:  # called again: one module, several inputs
            known = self.layers[name]
            known.sources = tuple(old | new for old, new in zip(known.sources, sources, strict=True))
        else:
            self.layers[name] = LayerWiring(name, out_groups.labels, sources)
        for filters, group in zip(sources, in_groups.labels, strict=True):
            for source, channel in filters:
                layer = self.layers[source]
                readers = layer.read_by.setdefault(name, [frozenset()] * len(layer.computed_by))
                readers[channel] |= {group}
        own = torch.tensor([self._number(frozenset({(name, channel)})) for channel in range(out_groups.channels)])
        value = _on_meta(module, x.value)
        return _Shadowed(value, own.view(1, -1, 1, 1).expand(value.shape))

    def _spread(self, x: _Shadowed, value: Tensor) -> _Shadowed:
        """An output that keeps channels apart: each comes from all that its input channel comes from."""
        if x.origin.dim() <= 2:
            return _Shadowed(value, x.origin.expand(value.shape))
        flat = x.origin.flatten(2)
        numbers = flat[..., 0]
        if not torch.equal(flat, numbers[..., None].expand_as(flat)):
            sets = [[self._sets[n] for n in channel.unique().tolist()] for channel in flat[0]]
            numbers = torch.tensor([[self._number(frozenset().union(*s)) for s in sets]])
        return _Shadowed(value, numbers.view(*value.shape[:2], *[1] * (value.dim() - 2)).expand(value.shape))

    def _mix(self, x: _Shadowed, value: Tensor) -> _Shadowed:
        """A linear layer: every output comes from every input."""
        numbers = x.origin.unique().tolist()
        number = self._number(frozenset().union(*(self._sets[n] for n in numbers)))
        return _Shadowed(value, torch.full(value.shape, number))

    def _unite(self, tensors: list[_Shadowed], value: Tensor) -> _Shadowed:
        """Sums and products: each element comes from both sides."""
        origin = tensors[0].origin.expand(value.shape)
        for other in tensors[1:]:
            pairs = torch.stack([origin, other.origin.expand(value.shape)], -1)
            unique, place = pairs.flatten(0, -2).unique(dim=0, return_inverse=True)
            numbers = [self._number(self._sets[a] | self._sets[b]) for a, b in unique.tolist()]
            origin = torch.tensor(numbers)[place].view(value.shape)
        return _Shadowed(value, origin)


def _parts(args: Any, part: str) -> Any:
    """The same arguments with every shadowed tensor replaced by one of its parts."""
    if isinstance(args, _Shadowed):
        return getattr(args, part)
    if isinstance(args, list | tuple):
        return type(args)(_parts(a, part) for a in args)
    return args


def _on_meta(module: nn.Module, x: Tensor) -> Tensor:
    """Run one module on the meta device without moving its parameters."""
    tensors = {n: t.to("meta") for n, t in (*module.named_parameters(), *module.named_buffers())}
    return torch.func.functional_call(module, tensors, (x,))
