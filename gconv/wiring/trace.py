"""Wiring of a model: the groups that compute and that read each filter, traced through the whole model.

"The group of a filter" is not always the group that computes it. AlexNet's conv1 is not grouped: its filters belong to
the groups of conv2 that *read* them. The model is traced once (torch.fx) and run on the meta device. Every tensor has
an origin, which holds the filters that each element comes from (``origins.py``). Every operation changes the origin as
it changes the channels (``flow.py``).
"""

from __future__ import annotations

import inspect
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from gconv.conv import CONVOLUTIONS, GroupedConv2d, cuts
from gconv.shuffle import ChannelPermutation, ChannelShuffle, channel_shuffle
from gconv.wiring.flow import Flow, NotFollowedError, Traced, traced_in
from gconv.wiring.meta import (
    MatchingTensors,
    Shape,
    first_line,
    image_shape,
    input_dtype,
    model_line,
    raise_if_scripted_or_lazy,
    restored_afterwards,
    unwrapped,
)
from gconv.wiring.origins import FilterSet, set_bits
from gconv.wiring.text_table import aligned

MOST_READERS, MOST_PARTS = 6, 12  # printed of one convolution, and in a line
ALTERNATIVES = "without wiring these still work: count_cost, and computing_groups (the group that computes each filter)"


@dataclass(frozen=True)
class LayerWiring:
    """The wiring of one convolution.

    Attributes:
        name: name of the module.
        computed_by: the group of this convolution that computes each filter, (O,).
        inputs_read_by: the group of this convolution that reads each input channel, (C,).
        sources: the filters that each input channel comes from, (C,); empty for the input of the network.
        read_by: the convolutions that read any of the filters, by name, in the order of computation. For each, the set
            of its groups that read each filter, (O,).
    """

    name: str
    computed_by: tuple[int, ...]
    inputs_read_by: tuple[int, ...]
    sources: tuple[FilterSet, ...]
    read_by: dict[str, list[frozenset[int]]] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return how many filters each group computes, and how many each group of each reader reads, a line each."""
        lines = [
            f"{self.name}: {len(self.computed_by)} filters",
            _counted("computed by", ((g,) for g in self.computed_by)),
        ]
        readers = list(self.read_by.items())
        lines += [_counted(f"read by {reader}", map(sorted, sets)) for reader, sets in readers[:MOST_READERS]]
        more = len(readers) - MOST_READERS
        return "\n  ".join([*lines, *([f"and read by {more} more"] if more > 0 else [])])

    def reading_sets(self, reader: str | None = None) -> list[frozenset[int]]:
        """Return the set of groups that read each filter, (O,); it may be empty or have several groups.

        Args:
            reader: name of the reading convolution, a key of ``read_by``; by default the first that reads these filters
                in several groups, else the first of all.

        Raises:
            KeyError: ``reader`` reads none of the filters.
        """
        reader = reader or self.first_reader()
        if reader and reader not in self.read_by:
            raise KeyError(f"{reader} reads no filter of {self.name}; read by: {', '.join(self.read_by) or 'none'}")
        return self.read_by[reader] if reader else [frozenset()] * len(self.computed_by)

    def reading_groups(self, reader: str | None = None) -> list[int | None]:
        """Return the one group that reads each filter, (O,); None if several groups read it, or none does.

        ``reading_sets`` distinguishes these two cases. Its argument and its error are the same.
        """
        return [next(iter(groups)) if len(groups) == 1 else None for groups in self.reading_sets(reader)]

    def first_reader(self) -> str | None:
        """Return the first convolution in which several groups read these filters, else the first reader, else None."""
        for reader, groups in self.read_by.items():
            if len(frozenset().union(*groups)) > 1:
                return reader
        return next(iter(self.read_by), None)


class Wiring(dict[str, LayerWiring]):
    """Wiring of each convolution, by module name, in the order of computation. Prints as a table."""

    def __missing__(self, name: object) -> LayerWiring:
        near = get_close_matches(str(name), self, n=3, cutoff=0.4) or list(self)[:3]
        raise KeyError(f"no convolution {name!r} was traced; near it: {', '.join(near)}")

    def __str__(self) -> str:
        header = ["convolution", "first read by", "filters", "groups", "groups that read"]
        rows = []
        for name, layer in self.items():
            reader = layer.first_reader()
            reading = len(frozenset().union(*layer.reading_sets())) if reader else 0
            others = f" (+{len(layer.read_by) - 1})" if len(layer.read_by) > 1 else ""
            filters, groups = len(layer.computed_by), len(set(layer.computed_by))
            rows.append([name, f"{reader or 'none'}{others}", f"{filters:,}", f"{groups:,}", f"{reading:,}"])
        return aligned(header, rows, texts=2)


def computing_groups(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the group that computes each filter, for every ``nn.Conv2d`` and ``GroupedConv2d``, without tracing."""
    return {name: cuts(m)[1].labels for name, m in model.named_modules() if isinstance(m, CONVOLUTIONS)}


def trace_wiring(model: nn.Module, input_shape: Shape) -> Wiring:
    """Trace which group computes and which group reads every filter of every convolution.

    A group reads a filter if a change of the filter changes an input of the group. There are two exceptions: the scale
    that a normalisation takes from other channels does not count, and regions of space are not distinguished after
    pooling. Convolutions are ``nn.Conv2d`` and ``GroupedConv2d``. Linear layers, other convolutions and attention pass
    on the filters of all channels that they mix. Modules that run only in training (auxiliary heads) are traced if the
    model is in training mode.

    Args:
        model: any module whose convolutions torch.fx can reach; it may be on the meta device. It is not changed.
            Wrappers (``torch.compile``, ``DataParallel``, ``DistributedDataParallel``) are removed first.
        input_shape: shape of one image, (C, H, W); or a batch of images, or its shape.

    Returns:
        The wiring of each convolution, by module name, in the order of computation.

    Raises:
        TypeError: ``model`` is no module, or ``input_shape`` no shape.
        ValueError: the model cannot be traced or does not take such images, or a convolution reads the result of an
            operation that has no rule. One line names the operation, and functions that need no wiring.
    """
    model = unwrapped(model, "trace_wiring")
    raise_if_scripted_or_lazy(model, "trace_wiring")
    shape, kind, tracer = image_shape(input_shape, model), type(model).__name__, _Tracer()
    try:
        # fx adds constants to the model while it traces
        with torch.device("cpu"), torch.no_grad(), restored_afterwards(model), _uncompiled():
            graph = tracer.trace(model, _defaults(model))
            walk = _WiringInterpreter(model, graph)
            with MatchingTensors():
                walk.run(walk.flow.traced(torch.empty(1, *shape, dtype=input_dtype(model), device="meta")))
    except _UntraceableError as error:
        raise ValueError(f"{kind}, images of {shape}: {error}; {ALTERNATIVES}") from None
    except Exception as error:
        where = model_line(reversed(list(traceback.walk_tb(error.__traceback__))))
        inside = f" {tracer.innermost}" if tracer.innermost else ""
        reason = f"torch.fx cannot trace{inside}{where}: {_plainly(error)}"
        raise ValueError(f"{kind}: {reason}; {ALTERNATIVES}") from None
    return _connect(model, walk.reads)


def _counted(done: str, filters: Iterable[Iterable[int]]) -> str:
    """Return the number of filters of each group, or set of groups: ``computed by group 0 (32), 1 (32)``."""
    counts = sorted(Counter(tuple(groups) for groups in filters).items())
    parts = [f"{'+'.join(map(str, groups)) or 'none'} ({count})" for groups, count in counts]
    more = [f"and {len(parts) - MOST_PARTS} more"] if len(parts) > MOST_PARTS else []
    return f"{done} group {', '.join([*parts[:MOST_PARTS], *more])}"


def _plainly(error: Exception) -> str:
    if "not installed as a submodule" in str(error):
        return "a module that it calls is held in a plain list or dict; hold it in an nn.ModuleList or nn.ModuleDict"
    return first_line(error)


def _uncompiled() -> AbstractContextManager[Any]:
    """Have fx trace into modules that ``torch.compile`` wraps."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    return torch._dynamo.config.patch(error_on_nested_fx_trace=False)  # type: ignore[attr-defined]


def _connect(model: nn.Module, reads: dict[str, list[FilterSet]]) -> Wiring:
    """Invert the sources of every input channel into the readers of every filter."""
    layers = Wiring()
    for name, sources in reads.items():
        convolution = model.get_submodule(name)
        assert isinstance(convolution, CONVOLUTIONS)
        in_groups, out_groups = cuts(convolution)
        layers[name] = LayerWiring(name, out_groups.labels, in_groups.labels, tuple(sources))
    for reader, sources in reads.items():
        reading = layers[reader].inputs_read_by
        members: list[set[FilterSet]] = [set() for _ in range(1 + max(reading))]
        for group, filters in zip(reading, sources, strict=True):
            members[group].add(filters)
        # For each source, the groups that read the same of its channels: many after a layer that mixes them all.
        alike: dict[str, dict[int, list[int]]] = {}
        for group, sets in enumerate(members):
            for source, bits in FilterSet.union(sets).channels.items():
                alike.setdefault(source, {}).setdefault(bits, []).append(group)
        for source, groups_of in alike.items():
            read = [frozenset[int]()] * len(layers[source].computed_by)
            for bits, groups in groups_of.items():
                same = frozenset(groups)
                for channel in set_bits(bits):
                    read[channel] = read[channel] | same if read[channel] else same
            layers[source].read_by[reader] = read
    return layers


def _defaults(model: nn.Module) -> dict[str, Any] | None:
    """Return the default values of the arguments of ``forward``."""
    parameters = list(inspect.signature(model.forward).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.default is not p.empty} or None


class _UntraceableError(Exception):
    """A model that cannot be traced: one line names the operation and the place."""


class _Tracer(fx.Tracer):
    """Trace into all modules, torch's layers too, down to functions; a module that cannot be traced stays one node."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=(channel_shuffle,))
        self.innermost = ""  # the module in which tracing failed

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d | GroupedConv2d | ChannelShuffle | ChannelPermutation | _NormBase)

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        stack = self.module_stack.copy()
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.innermost = self.innermost or self.path_of_module(m)
            if computing_groups(m):
                raise
            self.innermost, self.module_stack = "", stack
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["line"] = model_line(traceback.walk_stack(None), trace_wiring.__code__)
        return node


class _WiringInterpreter(fx.Interpreter):
    """Run the graph on traced tensors and record the sources that every convolution reads."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(model, graph=graph)
        self.extra_traceback = False
        self.flow = Flow()
        self.reads: dict[str, list[FilterSet]] = {}

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        unknown = _unknown_in((args, kwargs))
        if n.op == "output":
            return None
        try:
            if unknown is None:
                self.flow.check_age(traced_in((args, kwargs)))
                return super().run_node(n)
        except NotFollowedError as error:
            unknown = _Unknown(f"the wiring is not followed through {_place(n)}: {error}")
        except Exception as error:
            raise _UntraceableError(f"does not take such images at {_place(n)}: {first_line(error)}") from error
        if n.op == "call_module" and computing_groups(self.fetch_attr(str(n.target))):
            raise _UntraceableError(f"{unknown.reason}, and {n.target} reads what comes of it")
        return unknown

    def get_attr(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        return self.flow.constant(self.fetch_attr(target))

    def call_module(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        x = next(traced_in((args, kwargs)), None)
        if isinstance(module, nn.Conv2d | GroupedConv2d) and x is not None:
            return self._convolve(target, module, x)
        if isinstance(module, _NormBase) and x is not None:
            return self.flow.follow("batch_norm", torch.empty_like, (x,), {})
        if isinstance(module, ChannelShuffle | ChannelPermutation):
            return self.flow.move(module, args, kwargs)
        raise NotFollowedError("torch.fx cannot look into it")

    def call_function(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        library = str(getattr(target, "__module__", None)).partition(".")[0]
        known = library in (
            "torch",
            "torchvision",
            "gconv",
            "_operator",
            "builtins",
        )  # a user may define a function of the same name
        return self.flow.follow(target.__name__ if known else "", target, args, kwargs)

    def call_method(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        def method(x: Any, *rest: Any, **named: Any) -> Any:
            name = "reshape" if target == "view" else target  # a view may not fit the strides of an origin
            return getattr(x, name)(*rest, **named)

        return self.flow.follow(target, method, args, kwargs)

    def _convolve(self, name: str, module: nn.Conv2d | GroupedConv2d, x: Traced) -> Traced:
        channels = x.origin.dim() - 3
        others = [dim for dim in range(x.origin.dim()) if dim != channels]
        numbers = self.flow.origins.union_over(x.origin, others).flatten().tolist()
        sources = [self.flow.origins.sets[number] for number in numbers]
        if name in self.reads:  # one module called again, with other inputs
            sources = [FilterSet.union(pair) for pair in zip(self.reads[name], sources, strict=True)]
        self.reads[name] = sources
        value = _on_meta(module, x.value)
        own = self.flow.origins.filters_of(name, module.out_channels)
        return self.flow.traced(value, own.view(-1, 1, 1).expand(value.shape))


@dataclass(frozen=True)
class _Unknown:
    """Result of an operation that is not followed: an error only if a convolution reads it."""

    reason: str


def _unknown_in(tree: Any) -> _Unknown | None:
    if isinstance(tree, _Unknown):
        return tree
    items = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return next((unknown for unknown in map(_unknown_in, items) if unknown), None)


def _on_meta(module: nn.Module, x: Tensor) -> Tensor:
    """Run one module on the meta device and leave its parameters where they are."""
    tensors = {n: t.to("meta") for n, t in (*module.named_parameters(), *module.named_buffers())}
    return torch.func.functional_call(module, tensors, (x,))


def _place(node: fx.Node) -> str:
    """Return node, module and source line as text: "'sort' in head (net.py:12: x = torch.sort(x))"."""
    modules = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
    if node.op == "call_module":
        modules.append(str(node.target))
    inside = f" in {modules[-1]}" if modules else ""
    return f"{node.name!r}{inside}{node.meta.get('line', '')}"
