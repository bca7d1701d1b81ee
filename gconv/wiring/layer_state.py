"""State of a layer besides its weights, and other references to it: both must survive when the layer is replaced."""

from __future__ import annotations

import copy
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from gconv.wiring.meta import first_line

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
STATE_HOOKS = ("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks")
REMOVERS = (
    (prune.BasePruningMethod, "pruned", "torch.nn.utils.prune.remove(layer, {name!r})"),
    (WeightNorm, "under weight norm", "torch.nn.utils.remove_weight_norm(layer)"),
    (SpectralNorm, "under spectral norm", "torch.nn.utils.remove_spectral_norm(layer)"),
)
STANDARD = frozenset(vars(nn.Conv2d(1, 1, 1, device="meta")))
NOT_CALLED = ("_modules", "_parameters", "_buffers", "_compiled_call_impl")
ATOMS = (str, bytes, int, float, complex, Tensor, type, ModuleType, fx.Graph)  # graphs call layers by name


def copy_model(model: nn.Module) -> nn.Module:
    """Return a deep copy, with the attributes and gradient hooks of parameters, which ``copy.deepcopy`` drops.

    Raises:
        ValueError: a part of the model cannot be copied.
    """
    computed = {id(t): t for module in model.modules() for t in _tensors(list(vars(module).values())) if t.grad_fn}
    memo: dict[int, Any] = {
        number: t.detach().clone() for number, t in computed.items()
    }  # deepcopy fails on tensors that are not leaves
    try:
        twin = copy.deepcopy(model, memo)
    except Exception as error:
        raise ValueError(f"{type(model).__name__} cannot be copied: {first_line(error)}") from None
    for ours, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        copy_parameter_attributes(theirs, ours)
        for hook in (theirs._backward_hooks or {}).values():
            ours.register_hook(hook)
        for hook in (theirs._post_accumulate_grad_hooks or {}).values():  # type: ignore[union-attr]
            ours.register_post_accumulate_grad_hook(hook)
    for parent in list(twin.modules()):  # a compiled module would go on to compute the original layers
        for name, child in list(parent._modules.items()):
            if child is not None and "_orig_mod" in child._modules:
                parent._modules[name] = child._modules["_orig_mod"]
    return twin


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif type(tree) in (list, tuple, dict):
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from _tensors(item)


def weight_obstacle(conv: nn.Module) -> str | None:
    """Return why a layer cannot be replaced by one with a weight of another shape, and a remedy; None if it can."""
    if is_parametrized(conv):
        helps = "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight') makes it plain"
        return f"its {', '.join(conv.parametrizations)} is parametrised; {helps}"  # type: ignore[arg-type]
    for hook in conv._forward_pre_hooks.values():
        for kind, state, remover in REMOVERS:
            if isinstance(hook, kind):
                helps = remover.format(name=getattr(hook, "_tensor_name", "weight"))
                return f"it is {state}; {helps} makes it plain"
    return None


def state_obstacle(conv: nn.Module) -> str | None:
    """Return the state of a plain convolution that a weight of another shape would lose; None if there is none."""
    hooks = HOOKS + (STATE_HOOKS if type(conv) is nn.Conv2d else ())
    if any(_is_users(hook) for name in hooks for hook in getattr(conv, name).values()):
        return "it has hooks, which would be lost; remove them, and add them to the new layer"
    if "forward" in vars(conv):
        return "its forward was replaced"
    held = [*conv._parameters.keys() - {"weight", "bias"}, *conv._buffers, *conv._modules]
    if held:
        return f"it holds {', '.join(sorted(held))} besides weight and bias"
    for name, p in conv.named_parameters():
        if p._backward_hooks or p._post_accumulate_grad_hooks:  # type: ignore[attr-defined]
            return f"its {name} has gradient hooks, which would be lost; remove them, and add them to the new {name}"
        for mark, value in vars(p).items():
            if isinstance(value, Tensor) and value.numel() > 1:
                return f"its {name} carries the tensor {mark!r}, whose shape may be that of the dense {name}"
    return None


def _is_users(hook: Any) -> bool:
    """Return False for a hook of torch's own that remains after a weight norm was removed."""
    return not str(getattr(getattr(hook, "hook", hook), "__module__", "")).startswith("torch.nn.utils.")


def copy_attributes(conv: nn.Module, grouped: nn.Module) -> None:
    """Copy attributes and modes of a layer to the one that replaces it."""
    own = STANDARD | vars(grouped).keys()
    vars(grouped).update({name: value for name, value in vars(conv).items() if name not in own})
    for name, p in grouped.named_parameters():
        copy_parameter_attributes(conv.get_parameter(name), p)
    grouped.train(conv.training)


def copy_parameter_attributes(source: Tensor, target: Tensor) -> None:
    """Copy attributes that a user set on a parameter, such as its own learning rate."""
    for name, value in vars(source).items():
        vars(target).setdefault(name, value)


def unregistered_references(model: nn.Module) -> Mapping[nn.Module, str]:
    """Return the modules that a model also reaches through plain lists, dicts, functions or objects, and the place."""
    registered, places, seen = set(model.modules()), dict[nn.Module, str](), set[int]()

    def look(thing: Any, place: str) -> None:
        if isinstance(thing, ATOMS) or id(thing) in seen:
            return
        if isinstance(thing, nn.Module) and thing in registered:
            places.setdefault(thing, place)
            return
        seen.add(id(thing))
        for inner in _held_by(thing):
            look(inner, place)

    for path, module in model.named_modules():
        if "_orig_mod" in module._modules:  # the compiled module; the copy is not compiled
            continue
        for name, value in vars(module).items():
            if name not in NOT_CALLED and not name.endswith(("_hooks", "_with_kwargs")):
                look(value, f"{path or type(model).__name__}.{name}")
        for kind in type(module).__mro__[: type(module).__mro__.index(nn.Module)]:
            if not kind.__module__.startswith("torch."):
                for name, value in vars(kind).items():
                    if isinstance(value, FunctionType) and name != "__init__":
                        look(value, f"{kind.__name__}.{name}")
    return places


def _held_by(thing: Any) -> list[Any]:
    """Return the objects that an object holds and may call."""
    if isinstance(thing, dict):
        return list(thing.values())
    if isinstance(thing, list | tuple | set | frozenset | deque):
        return list(thing)
    if isinstance(thing, partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, MethodType):
        return [thing.__self__]
    if isinstance(thing, weakref.ref):
        return [thing()]
    if isinstance(thing, FunctionType):
        cells = [cell.cell_contents for cell in thing.__closure__ or () if _is_filled(cell)]
        named = [thing.__globals__.get(name) for name in thing.__code__.co_names]
        holders = [value for value in named if isinstance(value, nn.Module | list | tuple | dict)]
        return [*cells, *(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values(), *holders]
    return list(getattr(thing, "__dict__", {}).values())


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a variable that is not set yet
        return False
