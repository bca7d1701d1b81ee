"""Communication between the ranks of a placed network, layer by layer.

Ranks divide the outputs of a layer. So each rank holds the channels of a tensor whose filters it owns, in order.
Operations that keep channels separate (batch norms, activations, pools, sums) need no communication. If a layer reads
channels of other ranks, all ranks first gather them. In the backward pass each rank receives the gradient of its own
channels from all other ranks: as many elements again. Every rank computes the loss from the gathered output, so nothing
is sent back from there. No parameter is on two ranks, so nothing else is sent.

Legend: N batch, C channels, S elements of a channel of one image (H·W; 1 of a feature), R ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import activation, dropout, pooling
from torch.nn.modules.batchnorm import _BatchNorm

from gconv.conv import GroupedConv2d
from gconv.placement.owners import Owners, Placement, even, place
from gconv.shuffle import ChannelPermutation, ChannelShuffle
from gconv.wiring.flow import IN_PLACE, POINTWISE, POOLS

# Modules without parameters that work on each channel separately; below, functions and methods that do.
SOFTMAX_LAYERS = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin, nn.GLU)
MIXING_LAYERS = (*SOFTMAX_LAYERS, nn.PReLU, nn.MultiheadAttention, nn.AlphaDropout, nn.FeatureAlphaDropout)
CHANNELWISE_LAYERS = tuple(
    kind
    for room in (activation, pooling, dropout)
    for kind in vars(room).values()
    if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__ == room.__name__
    if kind not in MIXING_LAYERS
)
CHANNELWISE_LAYERS = (*CHANNELWISE_LAYERS, nn.Identity)
DROPOUT_OPS = {name for name in POINTWISE if "dropout" in name or name == "stochastic_depth"}
CHANNELWISE_OPS = (POINTWISE | POOLS | {"to", "type", "interpolate"}) - DROPOUT_OPS


@dataclass(frozen=True)
class Exchange:
    """One tensor that the ranks send each other in every step.

    Attributes:
        layer: name of the layer that reads the tensor.
        grouped: True if that layer is a grouped convolution.
        owners: the rank of each channel, (C,).
        elements: number of elements of a channel of one image, S.
        returned: True if the gradient of the tensor is sent back in training.
    """

    layer: str
    grouped: bool
    owners: Owners
    elements: int
    returned: bool

    def sent(self, ranks: int, training: bool = True) -> tuple[int, ...]:
        """Return the elements per image that each rank sends.

        Forward its own channels to all others, C_r · S · (R − 1); backward the gradient of the others' channels,
        (C − C_r) · S. The sum over ranks is (R − 1) · C · S for either.
        """
        own = [self.owners.count(rank) for rank in range(ranks)]
        back = training and self.returned
        return tuple(self.elements * (c * (ranks - 1) + back * (len(self.owners) - c)) for c in own)


@dataclass(frozen=True)
class Move:
    """Redistribution of one input of an operation before the operation.

    Attributes:
        exchange: the exchange that gives every rank the whole input; None if every rank has it already.
        kept: the rank that keeps each channel afterwards; None if every rank keeps all channels.
    """

    exchange: Exchange | None
    kept: Owners | None


@dataclass(frozen=True)
class Plan:
    """Execution of a network on several ranks.

    Attributes:
        placement: the rank of each filter.
        graph: the network's operations.
        moves: redistributions, by the name of the operation and that of its input.
        owners: the rank of each channel of an operation's output, by the name of the operation; None if every rank has
            all channels.
    """

    placement: Placement
    graph: fx.Graph
    moves: dict[tuple[str, str], Move]
    owners: dict[str, Owners | None]

    @property
    def exchanges(self) -> list[Exchange]:
        """All exchanges of a step, in the order of the forward pass."""
        return [move.exchange for move in self.moves.values() if move.exchange is not None]

    def sent(self, batch: int, training: bool = True) -> dict[str, int]:
        """Return the bytes that all ranks together send in one step in fp32, by the layer that reads them."""
        bytes_of: dict[str, int] = {}
        for e in self.exchanges:
            numbers = batch * sum(e.sent(self.placement.ranks, training))
            bytes_of[e.layer] = bytes_of.get(e.layer, 0) + 4 * numbers
        return bytes_of


def plan(model: nn.Module, input_shape: tuple[int, ...], ranks: int) -> Plan:
    """Place a network on ranks and plan the exchanges between them.

    Args:
        model: any network, on any device, meta too. It is not changed.
        input_shape: shape of one image, (C, H, W).
        ranks: number of ranks.

    Raises:
        ValueError: as ``place``; an operation that may mix channels (the message names it, and its layer).
    """
    placement, graph = place(model, input_shape, ranks), _Tracer().trace(model)
    if ranks == 1:
        return Plan(placement, graph, {}, {})
    walk = _PlanInterpreter(model, graph, placement)
    walk.run(torch.empty(2, *input_shape, device="meta"))
    return Plan(placement, graph, walk.moves, {n.name: owners for n, owners in walk.owners.items()})


class _Tracer(fx.Tracer):
    """Keep torch's layers and those of this package as single nodes."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = isinstance(m, GroupedConv2d | ChannelShuffle | ChannelPermutation)
        return ours or super().is_leaf_module(m, module_qualified_name)


class _PlanInterpreter(fx.Interpreter):
    """Run the graph on the meta device and record the owners of every tensor."""

    def __init__(self, model: nn.Module, graph: fx.Graph, placement: Placement) -> None:
        super().__init__(model, garbage_collect_values=False, graph=graph)
        self.extra_traceback = False
        self.placement = placement
        self.moves: dict[tuple[str, str], Move] = {}
        self.owners: dict[fx.Node, Owners | None] = {}
        self._learned: set[fx.Node] = set()  # through which a gradient is propagated

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        module = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        weights = any(p.requires_grad for p in module.parameters()) if module else False
        if weights or self._learned.intersection(n.all_input_nodes):
            self._learned.add(n)
        self.owners[n] = self._after(n, module, value)
        return value

    def call_module(self, target: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        tensors = {n: t.to("meta") for n, t in (*module.named_parameters(), *module.named_buffers())}
        return torch.func.functional_call(module, tensors, args, kwargs)

    def _after(self, n: fx.Node, module: nn.Module | None, value: Any) -> Owners | None:
        """Return the owners of the output of an operation; record the moves of its inputs."""
        name, target = _name(n, module), str(n.target)
        inputs = [i for i in n.all_input_nodes if isinstance(self.env[i], Tensor)]
        if n.op == "placeholder":
            return None
        if n.op == "output":
            return self._put_out(n, inputs)
        if n.op == "get_attr":
            raise ValueError(f"{_place(n)} cannot be placed on ranks: its numbers belong to no layer")
        if name in DROPOUT_OPS:
            raise ValueError(f"{_place(n)} cannot be placed on ranks: make it a layer, nn.Dropout")
        if target in self.placement.owners and module is not None:
            self._bring(n, inputs[0], self.placement.readers.get(target))
            return self._checked(n, self.placement.owners[target], value)
        if isinstance(module, _BatchNorm):
            kept = self.owners[inputs[0]] or even(value.shape[1], self.placement.ranks)
            self._bring(n, inputs[0], kept)
            return kept
        if module is not None and next(module.parameters(), None) is not None:
            raise ValueError(f"{_place(n)} cannot be placed on ranks: {type(module).__name__} may mix channels")
        if isinstance(module, CHANNELWISE_LAYERS) or name in CHANNELWISE_OPS or self._is_mean(n, name, inputs, value):
            return self._channelwise(n, inputs)
        if self._flattens(n, name, inputs, value):
            own = self.owners[inputs[0]]
            return own and tuple(rank for rank in own for _ in range(value.shape[1] // len(own)))
        if name in ("cat", "concat", "concatenate") and 1 in (*n.args[1:], n.kwargs.get("dim")):
            return self._joined(n, inputs)
        for i in inputs:  # every rank computes all channels, so any operation is right
            self._bring(n, i, None)
        return None

    def _put_out(self, n: fx.Node, inputs: list[fx.Node]) -> None:
        """Gather the output: the loss and its gradient are the same on every rank."""
        if len(inputs) != 1 or n.args[0] is not inputs[0]:
            raise ValueError("a network that returns more than one tensor cannot be placed on ranks")
        if self.owners[inputs[0]] is None:
            what = _place(inputs[0])
            raise ValueError(f"the network ends in {what}, which reads several ranks: return what it reads")
        self._bring(n, inputs[0], None, returned=False)

    def _channelwise(self, n: fx.Node, inputs: list[fx.Node]) -> Owners | None:
        """Handle an operation on separate channels: all operands get the owners of the first one that is cut."""
        own = next((self.owners[i] for i in inputs if self.owners[i] is not None), None)
        if own is None:
            return None
        for i in inputs:
            x = self.env[i]
            if self.owners[i] is None and (x.dim() < 2 or x.shape[1] == 1):  # one element for all channels
                continue
            if x.shape[1] != len(own):
                raise ValueError(f"{_place(n)} cannot be placed on ranks: its operands have other channels")
            if self._bring(n, i, own) and i is n.args[0] and _in_place(n):
                raise ValueError(
                    f"{_place(n)} cannot be placed on ranks: it changes in place a tensor that has to be moved"
                )
        return own

    def _joined(self, n: fx.Node, inputs: list[fx.Node]) -> Owners | None:
        """Handle a concatenation: each operand keeps its owners."""
        if all(self.owners[i] is None for i in inputs):
            return None
        owners: Owners = ()
        for i in inputs:
            own = self.owners[i] or even(self.env[i].shape[1], self.placement.ranks)
            self._bring(n, i, own)
            owners += own
        return owners

    def _is_mean(self, n: fx.Node, name: str, inputs: list[fx.Node], value: Any) -> bool:
        """Return True if an operation reduces each channel of an image separately."""
        if name not in ("mean", "sum", "amax", "amin") or not isinstance(value, Tensor) or len(inputs) != 1:
            return False
        dims = n.args[1] if len(n.args) > 1 else n.kwargs.get("dim")
        dims = [dims] if isinstance(dims, int) else dims
        return isinstance(dims, list | tuple) and all(d % self.env[inputs[0]].dim() > 1 for d in dims)

    def _flattens(self, n: fx.Node, name: str, inputs: list[fx.Node], value: Any) -> bool:
        """Return True if an operation maps (N, C, H, W) to (N, C·H·W) for any C."""
        named = name in ("flatten", "Flatten") or (name in ("view", "reshape") and n.args[-1] == -1)
        return bool(named and value.dim() == 2 and value.shape[0] == self.env[inputs[0]].shape[0])

    def _bring(self, n: fx.Node, source: fx.Node, kept: Owners | None, returned: bool = True) -> bool:
        """Record the move of an input, with its exchange, if it has to be moved; return whether it has."""
        own = self.owners[source]
        if own == kept:
            return False
        exchange = None
        if own is not None:
            layer, elements = _place(n), self.env[source][0].numel() // len(own)
            back = returned and source in self._learned
            exchange = Exchange(layer, layer in self.placement.readers, own, elements, back)
        self.moves[n.name, source.name] = Move(exchange, kept)
        return True

    def _checked(self, n: fx.Node, owners: Owners, value: Tensor) -> Owners:
        if value.dim() > 1 and value.shape[1] == len(owners):
            return owners
        raise ValueError(f"{_place(n)} cannot be placed on ranks: its outputs must be the second dimension")


def _name(n: fx.Node, module: nn.Module | None) -> str:
    """Return the name of an operation: a function, a method or a layer."""
    if module is not None:
        return type(module).__name__
    name = n.target if isinstance(n.target, str) else getattr(n.target, "__name__", "")
    name = name.removesuffix("_") if not name.endswith("__") else name
    return IN_PLACE.get(name, name)


def _in_place(n: fx.Node) -> bool:
    name = n.target if isinstance(n.target, str) else getattr(n.target, "__name__", "")
    return n.op != "call_module" and (name in IN_PLACE or (name.endswith("_") and not name.endswith("__")))


def _place(n: fx.Node) -> str:
    return str(n.target) if n.op in ("call_module", "get_attr") else n.name
