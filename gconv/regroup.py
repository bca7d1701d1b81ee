"""Turn the convolutions of an existing model (torchvision, timm, your own) into grouped ones, keeping trained weights.

A dense layer has a weight for every pair of channels. A grouped layer has only those of pairs inside a group; the
others are lost. ``keep="slice"`` cuts the channels in their present order. ``keep="energy"`` first searches for the
groups that hold most of the squared weights. It then permutes the channels before the layer, and back after it, so that
the rest of the model sees its channels in the old order.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from gconv.conv import GroupedConv2d
from gconv.cost import Cost, count_cost
from gconv.partition import Partition, Spec
from gconv.shuffle import ChannelPermutation
from gconv.wiring.assignment import assign_channels
from gconv.wiring.layer_state import (
    copy_attributes,
    copy_model,
    copy_parameter_attributes,
    state_obstacle,
    unregistered_references,
    weight_obstacle,
)
from gconv.wiring.meta import Shape, unwrapped
from gconv.wiring.text_table import aligned

Keep = Literal["slice", "energy"]
Where: TypeAlias = "str | Sequence[str] | Callable[[str, nn.Module], bool] | None"
MAX_PRINTED_LAYERS, MAX_PRINTED_REASONS = 18, 8


@dataclass(frozen=True)
class RegroupedLayer:
    """One convolution that was cut into groups.

    Attributes:
        name: name of the module.
        in_groups, out_groups: partitions of its inputs and outputs; ``str()`` gives them as text.
        kept: fraction of its weight energy (sum of squares) that is kept, 0 to 1; None if the weights are on the meta
            device and have no values.
    """

    name: str
    in_groups: Partition
    out_groups: Partition
    kept: float | None


@dataclass(frozen=True)
class Regrouped:
    """A regrouped copy of a model, and the list of changes.

    Attributes:
        original: the model that was passed in.
        model: the copy with its convolutions cut. With ``keep="energy"`` a layer whose channels were permuted is a
            Sequential of ``gather``, ``conv`` and ``scatter``.
        changed: the convolutions that were cut.
        skipped: reason for each requested convolution that was not cut, by name.
    """

    original: nn.Module
    model: nn.Module
    changed: tuple[RegroupedLayer, ...]
    skipped: Mapping[str, str]

    def __str__(self) -> str:
        """Return one line per layer that was cut, then the others by reason."""
        rows = []
        for layer in self.changed:
            inputs, outputs = str(layer.in_groups), str(layer.out_groups)
            cut = outputs if inputs == outputs else f"{inputs} -> {outputs}"
            rows.append([layer.name, cut, "" if layer.kept is None else f"{layer.kept:.1%}"])
        lines = [aligned(["layer", "groups", "weight energy kept"], rows, texts=2, max_rows=MAX_PRINTED_LAYERS)]
        lines += [f"{len(rows)} of {len(rows) + len(self.skipped)} convolutions regrouped"]
        reasons = list(dict.fromkeys(self.skipped.values()))
        for reason in reasons[:MAX_PRINTED_REASONS]:
            lines.append(f"not regrouped, {reason}: {_some([n for n, why in self.skipped.items() if why == reason])}")
        if len(reasons) > MAX_PRINTED_REASONS:
            lines.append(f"… {len(reasons) - MAX_PRINTED_REASONS} more reasons")
        return "\n".join(lines)

    def costs(self, input_shape: Shape) -> tuple[Cost, Cost]:
        """Return the cost before and after, with the same layer names in the same order.

        Args:
            input_shape: shape of one image, (C, H, W); or a batch of images, or its shape.

        Raises:
            ValueError: the model cannot take an input of this shape.
        """
        before, after = count_cost(self.original, input_shape), count_cost(self.model, input_shape)
        pairs = zip(before.layers, after.layers, strict=True)
        return before, Cost(tuple(replace(new, name=old.name) for old, new in pairs))


def regroup(model: nn.Module, groups: Spec, where: Where = None, keep: Keep = "slice") -> Regrouped:
    """Cut the convolutions of a copy of ``model`` into groups.

    A layer keeps everything else: stride, padding, dilation, bias, dtype, device, memory format, ``requires_grad``,
    training mode, attributes that were set on the layer or its weights, and all places in which the model uses it. A
    layer stays dense if it would lose something (hooks, masks, parametrisations, a reference to it outside of the
    modules); the reason names the remedy. Compiled parts of the model are not compiled in the copy.

    Args:
        model: any module; it is not changed. Wrappers (``torch.compile``, ``DataParallel``,
            ``DistributedDataParallel``) are removed first.
        groups: partition of inputs and outputs, anything that ``Partition.of`` reads: ``4``, ``"log:4"``,
            ``"4:2:1:1"``, ``"~log:4"`` (rounds to whole channels).
        where: the convolutions to cut, all by default: names, with wildcards and commas
            (``"layer*.conv2,stem.*"``) or in a list; or a function of name and module that returns True for them.
        keep: the groups of channels: ``"slice"`` cuts the channels in their present order, ``"energy"`` searches for
            the groups that hold most of the squared weights.

    Returns:
        The copy, the layers that were cut, and a reason for each that was not: it has groups already, its channels
        cannot be cut in this way, or it is not a plain 2-D convolution.

    Raises:
        TypeError: ``model`` is no module; ``where`` is neither names nor a function.
        ValueError: the model is scripted or cannot be copied; ``where`` matches no convolution, or none that can be
            cut; an unknown ``keep``.
    """
    if keep not in ("slice", "energy"):
        raise ValueError(f"keep={keep!r}: must be 'slice' or 'energy'")
    model = unwrapped(model, "regroup")
    names = _choose(model, where)
    regrouped, elsewhere = copy_model(model), unregistered_references(model)
    users = Counter(id(p) for module in regrouped.modules() for p in module.parameters(recurse=False))
    changed: list[RegroupedLayer] = []
    skipped: dict[str, str] = {}
    cut: dict[nn.Module, nn.Module] = {}
    for name, dense in names.items():
        conv, path = regrouped.get_submodule(name), name or type(model).__name__
        try:
            if any(users[id(p)] > 1 for p in conv.parameters(recurse=False)):
                raise ValueError("it shares its weight or bias with another layer")
            plain = _plain(conv)
            if dense in elsewhere:
                kept = f"the model also holds it outside of its modules ({elsewhere[dense]}), where it would stay dense"
                raise ValueError(f"{kept}; hold it in an nn.ModuleList or nn.ModuleDict alone")
            with torch.device("cpu"):  # permutations need values even if models are built on the meta device
                cut[conv], layer = _cut(path, plain, groups, keep)
        except ValueError as error:
            skipped[path] = str(error)
        else:
            changed.append(layer)
    if not changed:
        (reason, count), *_ = Counter(skipped.values()).most_common(1)
        most = "" if count == len(skipped) else f" ({count} of them for this reason)"
        example = next(name for name in skipped if skipped[name] == reason)
        raise ValueError(f"groups={groups!r} cuts 0 of {len(names)} convolutions; {example}: {reason}{most}")
    return Regrouped(model, _replace(regrouped, cut), tuple(changed), skipped)


def _choose(model: nn.Module, where: Where) -> dict[str, nn.Module]:
    """Return the convolutions that ``where`` matches, by one name each, in the order of the modules."""
    every = {
        name.replace("_orig_mod.", "").removesuffix("._orig_mod"): module  # the copy is not compiled
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, _ConvNd | GroupedConv2d)
    }
    if not every:
        raise ValueError(f"{type(model).__name__} has no convolution")
    if where is None:
        matched = list(every)
    elif callable(where):
        matched = [name for name, module in every.items() if where(name, module)]
        if not matched:
            raise ValueError(f"where matches none of {len(every)} convolutions: {_some(list(every))}")
    else:
        given = [where] if isinstance(where, str) else list(where) if isinstance(where, Sequence) else [where]
        if not given or not all(isinstance(one, str) for one in given):
            raise TypeError(f"where={where!r}: must be names such as 'layer*.conv2,stem.*', or a function")
        patterns = [pattern.strip() for one in given for pattern in one.split(",")]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in every):
                raise ValueError(f"where={pattern!r} matches no convolution; {_hint(pattern, list(every))}")
        matched = [name for name in every if any(fnmatchcase(name, pattern) for pattern in patterns)]
    first_names: dict[nn.Module, str] = {}
    for name in matched:
        first_names.setdefault(every[name], name)
    return {name: module for module, name in first_names.items()}


def _hint(pattern: str, names: list[str]) -> str:
    if any(name.startswith(f"{pattern}.") for name in names):
        return f"for all that are in it write {pattern}.*"
    near = get_close_matches(pattern, names, n=3, cutoff=0.5)
    return f"near it: {', '.join(near)}" if near else f"there are: {_some(names)}"


def _some(names: list[str], listed: int = 6) -> str:
    return ", ".join(names[:listed]) + (f" and {len(names) - listed} more" if len(names) > listed else "")


def _plain(module: nn.Module) -> nn.Conv2d | GroupedConv2d:
    """Return the module if it is a plain dense 2-D convolution.

    Raises:
        ValueError: it is another kind of module, which the message names.
    """
    reason = weight_obstacle(module)
    if reason:
        raise ValueError(reason)
    if type(module) not in (nn.Conv2d, GroupedConv2d):
        raise ValueError(f"{type(module).__name__}: only Conv2d and GroupedConv2d can be cut")
    assert isinstance(module, nn.Conv2d | GroupedConv2d)
    if module.groups > 1:
        if module.groups == module.in_channels:
            raise ValueError("depthwise: each channel is a group already")
        cut = module.geometry.out_groups if isinstance(module, GroupedConv2d) else module.groups
        raise ValueError(f"it has groups already: {cut}")
    reason = state_obstacle(module)
    if reason:
        raise ValueError(reason)
    return module


def _cut(name: str, conv: nn.Conv2d | GroupedConv2d, groups: Spec, keep: Keep) -> tuple[nn.Module, RegroupedLayer]:
    """Return the grouped layer that replaces a dense one, and its record.

    Raises:
        ValueError: the channels cannot be cut in this way.
    """
    in_groups, out_groups = Partition.of(groups, conv.in_channels), Partition.of(groups, conv.out_channels)
    if in_groups.groups == 1:
        raise ValueError("it has one group already")
    in_order_C, out_order_O = torch.arange(conv.in_channels), torch.arange(conv.out_channels)
    kept = None
    if not conv.weight.is_meta:
        energy_OC = conv.weight.detach().to("cpu", torch.float64).square().sum((2, 3))
        if keep == "energy":
            in_order_C, out_order_O = assign_channels(energy_OC, in_groups, out_groups)
        inside = sum(block.sum().item() for block in _blocks(energy_OC, in_order_C, out_order_O, in_groups, out_groups))
        total = energy_OC.sum().item()
        kept = inside / total if total else 1.0
    elif keep == "energy":
        raise ValueError("its weights are on the meta device and have no energy; keep='slice' needs none")
    grouped = GroupedConv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        out_groups,
        conv.bias is not None,
        conv.padding_mode,
        device="meta",  # so that no random numbers are drawn
        in_groups=in_groups,
    )
    blocks = _blocks(conv.weight.detach(), in_order_C, out_order_O, in_groups, out_groups)
    weight = torch.cat([block.flatten(0, 1) for block in blocks]).view(grouped.geometry.weight_shape)
    if weight.dim() == 4 and conv.weight.is_contiguous(memory_format=torch.channels_last):
        weight = weight.contiguous(memory_format=torch.channels_last)
    own, grouped.weight = grouped.weight, nn.Parameter(weight, conv.weight.requires_grad)
    copy_parameter_attributes(own, grouped.weight)
    if conv.bias is not None:
        bias_O = conv.bias.detach()[out_order_O.to(conv.bias.device)]
        grouped.bias = nn.Parameter(bias_O, conv.bias.requires_grad)
    copy_attributes(conv, grouped)
    layer = _reordered(grouped, in_order_C, out_order_O).to(weight.device).train(conv.training)
    return layer, RegroupedLayer(name, in_groups, out_groups, kept)


def _blocks(
    weight: Tensor, in_order_C: Tensor, out_order_O: Tensor, in_groups: Partition, out_groups: Partition
) -> list[Tensor]:
    """Return the weights (O, C, …) that are kept, one block (O_g, C_g, …) per group."""
    in_order_C, out_order_O = in_order_C.to(weight.device), out_order_O.to(weight.device)
    sizes = list(in_groups.sizes), list(out_groups.sizes)
    pairs = zip(in_order_C.split(sizes[0]), out_order_O.split(sizes[1]), strict=True)
    return [weight[outputs][:, inputs] for inputs, outputs in pairs]


def _reordered(grouped: GroupedConv2d, in_order_C: Tensor, out_order_O: Tensor) -> nn.Module:
    """Return the layer with a permutation of its inputs before it and of its outputs after it, where needed."""
    steps: OrderedDict[str, nn.Module] = OrderedDict()
    for name, order, module in (
        ("gather", in_order_C, ChannelPermutation(in_order_C.tolist())),
        ("conv", None, grouped),
        ("scatter", out_order_O, ChannelPermutation(out_order_O.argsort().tolist())),
    ):
        if order is None or not torch.equal(order, torch.arange(len(order))):
            steps[name] = module
    return nn.Sequential(steps) if len(steps) > 1 else grouped


def _replace(root: nn.Module, cut: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Replace the dense layers by the grouped ones in every place that holds them."""
    for parent in list(root.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in cut:
                parent.add_module(name, cut[child])
    return cut.get(root, root)
