"""Effect of each torch operation on channels: the operation moves them, keeps them separate, or mixes them.

A traced tensor has a value on the meta device, and an origin: an integer tensor of the same shape that holds, for each
element, the number of the set of filters that it comes from. If an operation moves elements, the same call moves the
origin. Every other operation follows one of the rules below. Normalisations (local response, group, layer, instance)
read other channels only to scale, so they keep channels separate. Products and gates (squeeze-and-excitation,
attention) mix: their output comes from both operands. An operation without a rule raises ``NotFollowedError``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gconv.wiring.origins import Origins, comes_from_none, uniform


class NotFollowedError(Exception):
    """The sources of the channels are unknown after an operation."""


@dataclass
class Traced:
    """A tensor on the meta device and, for each element, the number of the set of filters that it comes from.

    ``age`` is the number of changes in place before the origin was recorded.
    """

    value: Tensor
    origin: Tensor
    age: int = 0


@dataclass(frozen=True)
class Call:
    """One call of an operation: its arguments, the traced tensors among them, and the shape of its result."""

    name: str
    args: tuple
    kwargs: dict[str, Any]
    inputs: list[Traced]
    shape: torch.Size

    def argument(self, position: int, *names: str) -> Any:
        """Return an argument by its position or one of its names; None if it is not given."""
        if len(self.args) > position:
            return self.args[position]
        return next((self.kwargs[name] for name in names if name in self.kwargs), None)

    def dims(self) -> list[int]:
        """Return the dimensions that the call names; all if it names none."""
        dims = self.argument(1, "dim", "axis")
        if dims is None:
            return list(range(self.inputs[0].origin.dim()))
        return [dims] if isinstance(dims, int) else list(dims)


class Flow:
    """Follow operations, one call after the other."""

    def __init__(self) -> None:
        self.origins = Origins()
        self._changes: list[tuple[int, range]] = []  # changes in place: storage, and range inside it

    def traced(self, value: Tensor, origin: Tensor | None = None) -> Traced:
        """Return a tensor with its origin; by default it comes from no filter."""
        if origin is None:
            origin = torch.zeros((), dtype=torch.long, device="cpu").expand(value.shape)
        return Traced(value, origin, len(self._changes))

    def constant(self, value: Any) -> Any:
        """Return a traced tensor that comes from no filter. Integers keep their values, because they may index."""
        if isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
            return [self.constant(item) for item in value]
        if not isinstance(value, Tensor):
            return value
        if value.is_floating_point() or value.is_complex() or value.is_meta:
            return self.traced(value.detach().to("meta"))
        return value.detach().cpu().clone()

    def follow(self, name: str, function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Return the traced result of one call.

        Args:
            name: name of torch's function or method.
            function: computes the operation.
            args, kwargs: its arguments, with traced tensors anywhere in them.

        Raises:
            NotFollowedError: there is no rule for the operation.
        """
        inputs = list(traced_in((args, kwargs)))
        if not inputs:
            return self.constant(function(*args, **kwargs))
        if name == "getitem" and isinstance(args[0], list | tuple):
            return function(*args)
        if name == "getattr":
            return _attribute(*args)
        changes = name in IN_PLACE or (name.endswith("_") and not name.endswith("__"))
        name = name.removesuffix("_") if changes else name
        name = IN_PLACE.get(name, name)
        empty = all(comes_from_none(t.origin) for t in inputs)
        if name in MOVES and not empty:
            return self.move(function, args, kwargs, name)
        if (
            changes and not empty and name not in RULES
        ):  # its target, and all tensors that share its storage, are unknown from here on
            self._changes.append(_memory_range(args[0].value))
        value = self._value(name, function, args, kwargs)
        if empty or name in CREATES:
            return self.constant(value)
        first = value[0] if isinstance(value, list | tuple) and value else value
        if not isinstance(first, Tensor):
            return value
        origin = self._rule(Call(name, args, kwargs, inputs, first.shape))
        if changes:
            return self._change(args[0], origin)
        if isinstance(value, Tensor):
            return self.traced(value, origin)
        return [self.traced(v, origin) for v in value]

    def check_age(self, tensors: Iterable[Traced]) -> None:
        """Raise NotFollowedError for a tensor that was changed in place through another tensor, such as a view."""
        for t in tensors:
            storage, held = _memory_range(t.value)
            for changed, stretch in self._changes[t.age :]:
                if storage == changed and held.start < stretch.stop and stretch.start < held.stop:
                    raise NotFollowedError("a tensor that it reads was changed in place under another name")

    def move(self, function: Callable, args: tuple, kwargs: dict[str, Any], name: str = "") -> Any:
        """Move the origin by the same call, for a call that moves elements and computes none."""
        if name in INDEXES and any(True for _ in traced_in((args[1:], kwargs))):
            raise NotFollowedError("its index is computed, and so unknown before the network runs")
        value = function(*_parts(args, "value"), **_parts(kwargs, "value"))
        if name == "pad" and len(args) + len(kwargs) > 2:  # padding comes from no filter, whatever its value
            args, kwargs = args[:3], {k: v for k, v in kwargs.items() if k != "value"}
        origin = function(*_parts(args, "origin"), **_parts(kwargs, "origin"))
        if isinstance(value, Tensor):
            return self.traced(value, uniform(origin))
        return [self.traced(v, uniform(o)) for v, o in zip(value, origin, strict=True)]

    def _value(self, name: str, function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        try:
            return function(*_parts(args, "value"), **_parts(kwargs, "value"))
        except Exception as error:
            if name in RULES:  # the network does not take such an input
                raise
            raise NotFollowedError("it is unknown, and cannot run without numbers") from error

    def _rule(self, call: Call) -> Tensor:
        if call.name not in RULES or "out" in call.kwargs:
            raise NotFollowedError("the sources of its channels are unknown")
        return RULES[call.name](call, self.origins).expand(call.shape)

    def _change(self, target: Traced, origin: Tensor) -> Traced:
        """Record a change in place. Other tensors of the same storage become outdated."""
        if not torch.equal(target.origin, origin):
            self._changes.append(_memory_range(target.value))
            target.origin, target.age = origin, len(self._changes)
        return target


def traced_in(tree: Any) -> Iterator[Traced]:
    """Return all traced tensors in nested arguments."""
    if isinstance(tree, Traced):
        yield tree
    elif isinstance(tree, list | tuple | dict):
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from traced_in(item)


def _parts(tree: Any, part: str) -> Any:
    """Return the arguments with every traced tensor replaced by its value on the meta device, or by its origin."""
    if isinstance(tree, Traced):
        return getattr(tree, part)
    if isinstance(tree, Tensor):
        return tree.to("meta") if part == "value" else tree
    if isinstance(tree, list | tuple):
        return type(tree)(_parts(item, part) for item in tree)
    if isinstance(tree, dict):
        return {key: _parts(item, part) for key, item in tree.items()}
    return tree


def _memory_range(value: Tensor) -> tuple[int, range]:
    """Return the storage of a tensor, and the range between its first and last element."""
    start = value.storage_offset()
    length = 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    return value.untyped_storage()._cdata, range(start, start + length)


def _attribute(x: Any, name: str) -> Any:
    if isinstance(x, list | tuple):  # as torch.max returns
        return x[("values", "indices").index(name)]
    if name == "device":
        return torch.device("cpu")  # so that tensors created there have values
    held = getattr(x.value, name)
    if isinstance(held, Tensor):
        raise NotFollowedError("the sources of its channels are unknown")
    return held


def _unites(call: Call, origins: Origins) -> Tensor:
    return origins.union([t.origin for t in call.inputs], call.shape)


def _casts(call: Call, origins: Origins) -> Tensor:
    return call.inputs[0].origin


def _keeps(call: Call, origins: Origins) -> Tensor:
    if not all(comes_from_none(t.origin) for t in call.inputs[1:]):
        raise NotFollowedError("its parameters come from filters")
    return call.inputs[0].origin


def _planes(call: Call, origins: Origins) -> Tensor:
    """Keep channels separate and mix all positions of each."""
    dims = int(call.name[-2]) if call.name in POOLS else call.inputs[0].origin.dim() - 2
    return origins.union_over(call.inputs[0].origin, range(-dims, 0))


def _reduces(call: Call, origins: Origins) -> Tensor:
    if len(call.inputs) > 1:  # torch.maximum under its short name
        return _unites(call, origins)
    return origins.union_over(call.inputs[0].origin, call.dims()).reshape(call.shape)


def _along(call: Call, origins: Origins) -> Tensor:
    return origins.union_over(call.inputs[0].origin, call.dims())


def _linear(call: Call, origins: Origins) -> Tensor:
    return origins.union_over(_keeps(call, origins), [-1])


def _convolves(call: Call, origins: Origins) -> Tensor:
    """Follow a convolution that is not a module: its outputs come from all inputs of their group."""
    origin, groups = _keeps(call, origins), call.argument(6, "groups") or 1
    space = int(call.name[-2])
    channels = origin.dim() - space - 1
    grouped = origin.unflatten(channels, (groups, -1))
    united = origins.union_over(grouped, range(-space - 1, 0)).select(channels + 1, 0)
    return united.repeat_interleave(call.shape[channels] // groups, channels)


def _matmul(call: Call, origins: Origins) -> Tensor:
    left, right = (t.origin for t in call.inputs)
    if left.dim() < 2 or right.dim() < 2:
        raise NotFollowedError("it multiplies by a vector")
    return origins.union([origins.union_over(left, [-1]), origins.union_over(right, [-2])], call.shape)


def _einsum(call: Call, origins: Origins) -> Tensor:
    terms, _, output = str(call.args[0]).replace(" ", "").partition("->")
    parts = []
    for letters, t in zip(terms.split(","), call.inputs, strict=True):
        if "." in letters or not output or len(set(letters)) < len(letters):
            raise NotFollowedError("its equation needs an arrow, and no dots and no repeated letters")
        summed = [dim for dim, letter in enumerate(letters) if letter not in output]
        kept = [letters.index(letter) for letter in output if letter in letters]
        origin = origins.union_over(t.origin, summed).permute(kept + summed)[(..., *[0] * len(summed))]
        parts.append(origin[tuple(slice(None) if letter in letters else None for letter in output)])
    return origins.union(parts, call.shape)


def _attends(call: Call, origins: Origins) -> Tensor:
    """Follow softmax(q kᵀ) v: the weights of one query come from it and all keys."""
    query, key, value, *mask = (t.origin for t in call.inputs)
    parts = [origins.union_over(query, [-1]), origins.union_over(key, [-2, -1]), origins.union_over(value, [-2])]
    return origins.union(parts + [origins.union_over(m, [-1]) for m in mask], call.shape)


# Each name is that of a function and of a method.
IN_PLACE = {"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "truediv"}
INDEXES = {"getitem", "index_select", "gather", "take_along_dim"}
CREATES = {"zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"}
CREATES |= {"new_zeros", "new_ones", "new_empty", "new_full"}
MOVES = INDEXES | {
    *("view", "reshape", "flatten", "unflatten", "ravel", "squeeze", "unsqueeze", "expand", "expand_as", "view_as"),
    *("transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis", "t", "flip", "roll", "rot90"),
    *("cat", "concat", "concatenate", "stack", "split", "chunk", "tensor_split", "unbind", "narrow", "select"),
    *("repeat", "repeat_interleave", "tile", "reshape_as", "broadcast_to"),
    *("channel_shuffle", "native_channel_shuffle", "pixel_shuffle", "pixel_unshuffle", "pad"),
}
POINTWISE = {
    *("relu", "relu6", "leaky_relu", "rrelu", "elu", "celu", "selu", "silu", "mish", "gelu", "hardtanh", "hardswish"),
    *("hardsigmoid", "hardshrink", "softshrink", "tanhshrink", "threshold", "sigmoid", "logsigmoid", "log_sigmoid"),
    *("tanh", "softplus", "softsign", "dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout"),
    *("alpha_dropout", "feature_alpha_dropout", "stochastic_depth", "contiguous", "clone", "detach", "float", "half"),
    *("bfloat16", "double", "neg", "abs", "exp", "log", "log1p", "expm1", "sqrt", "rsqrt"),
    *("square", "reciprocal", "sin", "cos", "erf", "floor", "ceil", "round", "sign", "pow", "add", "sub", "subtract"),
    *("rsub", "mul", "multiply", "div", "divide", "truediv", "maximum", "minimum", "where", "lerp", "addcmul"),
    *("addcdiv", "clamp", "clip", "clamp_min", "clamp_max", "nan_to_num", "masked_fill"),
    *("eq", "ne", "lt", "le", "gt", "ge", "logical_not", "logical_and", "logical_or"),
}
NORMALISES = {"batch_norm", "instance_norm", "layer_norm", "group_norm", "rms_norm", "local_response_norm", "normalize"}
POOLS = {f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max", "lp") for n in (1, 2, 3)}
RULES: dict[str, Callable[[Call, Origins], Tensor]] = {
    **dict.fromkeys(POINTWISE, _unites),
    **dict.fromkeys(("to", "type", "type_as"), _casts),
    **dict.fromkeys(NORMALISES | {"prelu"}, _keeps),
    **dict.fromkeys(POOLS | {"max_pool2d_with_indices", "interpolate", "upsample"}, _planes),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min", "std", "var", "prod", "logsumexp"), _reduces),
    **dict.fromkeys(("softmax", "log_softmax", "cumsum", "cumprod"), _along),
    **dict.fromkeys((f"conv{side}{n}d" for side in ("", "_transpose") for n in (1, 2, 3)), _convolves),
    **dict.fromkeys(("matmul", "bmm"), _matmul),
    "linear": _linear,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attends,
}
