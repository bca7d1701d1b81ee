"""Models run on the meta device, for the shapes of their tensors alone.

Parameters, buffers and the image are on the meta device, where nothing is computed. A model may hold or create plain
tensors on other devices; these are moved to the meta device when an operation combines them, and dtypes are made equal.
The model is not changed.
"""

from __future__ import annotations

import linecache
import operator
import os
import reprlib
import sys
import traceback
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import reduce
from types import CodeType, FrameType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from gconv.conv import GroupedConv2d

TORCH_FOLDER = os.path.dirname(torch.__file__)
OWN_FOLDER = os.path.dirname(os.path.dirname(__file__))  # of the package
PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
WRAPPERS = (*PARALLEL, AveragedModel)
CREATES = {torch.zeros, torch.ones, torch.empty, torch.full, torch.rand, torch.randn}  # often filled in place
Shape: TypeAlias = "Sequence[int] | Tensor"


def unwrapped(model: nn.Module, call: str) -> nn.Module:
    """Return the model inside ``torch.compile``, ``DataParallel``, ``DistributedDataParallel`` and ``AveragedModel``.

    Args:
        model: as the user passes it.
        call: name of the function that it is passed to, for error messages.

    Raises:
        TypeError: it is no module.
        ValueError: it is scripted.
    """
    if isinstance(model, type):
        raise TypeError(f"{call} takes a model, not the class {model.__name__}; give {model.__name__}(…)")
    if not isinstance(model, nn.Module):
        raise TypeError(f"{call} takes a torch.nn.Module first, not {reprlib.repr(model)}")
    while True:
        if "_orig_mod" in model._modules:  # torch.compile's OptimizedModule
            model = model._modules["_orig_mod"]  # type: ignore[assignment]
        elif isinstance(model, WRAPPERS):
            model = model.module
        else:
            break
    if isinstance(model, torch.jit.ScriptModule):
        raise _closed("the model", model, call)
    return model


def raise_if_scripted_or_lazy(model: nn.Module, call: str) -> None:
    """Raise ValueError for a model with scripted layers, or with lazy layers that have no weights yet."""
    for name, module in model.named_modules():
        where = f"its module {name}" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise _closed(where, module, call)
        if any(is_lazy(t) for t in (*module._parameters.values(), *module._buffers.values()) if t is not None):
            kind = type(module).__name__
            raise ValueError(f"{call}: {where} ({kind}) has no weights yet; run the model once on a batch first")


def _closed(where: str, module: nn.Module, call: str) -> ValueError:
    closed = f"{where} is a {type(module).__name__}, whose layers are closed"
    return ValueError(f"{call}: {closed}; call {call} before torch.jit.script or trace")


def image_shape(given: Shape, model: nn.Module) -> tuple[int, ...]:
    """Return the shape of one image, given that shape, the shape of a batch, or a tensor of either.

    Args:
        given: (C, H, W) or (N, C, H, W), or as many dimensions as the convolutions of the model take.
        model: decides how many dimensions an image has.

    Raises:
        TypeError: it is no shape.
        ValueError: a size below 1.
    """
    argument = f"input_shape={reprlib.repr(given) if not isinstance(given, Tensor) else tuple(given.shape)}"
    try:
        shape = tuple(operator.index(size) for size in getattr(given, "shape", given))  # type: ignore[union-attr]
    except TypeError:
        raise TypeError(f"{argument}: give the shape of one image, such as (3, 224, 224), or a tensor") from None
    spaces = {len(m.kernel_size) for m in model.modules() if isinstance(m, _ConvNd | GroupedConv2d)}
    batch = len(shape) - 1 not in spaces and len(shape) - 2 in spaces
    if batch or (not spaces and isinstance(given, Tensor) and len(shape) > 1):
        shape = shape[1:]
    if not shape or min(shape) < 1:
        raise ValueError(f"{argument}: every size of an image must be at least 1, as in (3, 224, 224)")
    return shape


def run_on_meta(model: nn.Module, shape: tuple[int, ...], requires_grad: bool = False) -> Any:
    """Return the output of a model for one image, in evaluation mode on the meta device. The model is not changed.

    Args:
        model: any, without wrappers around it.
        shape: shape of the image, without batch.
        requires_grad: True if the image requires a gradient; parameters always do.

    Raises:
        ValueError: the model does not take such an image, or its ``forward`` depends on the values of tensors.
    """
    tensors = {name: _on_meta(b) for name, b in model.named_buffers()}
    for name, p in model.named_parameters():
        tensors[name] = _on_meta(p).requires_grad_(_is_computed(p))
    x = torch.empty(1, *shape, dtype=input_dtype(model), device="meta", requires_grad=requires_grad)
    with restored_afterwards(model), MatchingTensors():
        model.eval()
        try:
            return torch.func.functional_call(model, tensors, (x,))
        except Exception as error:
            raise ValueError(_complaint(model, shape, error)) from None


def input_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype of the first floating-point parameter, in which a model most likely computes."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _on_meta(t: Tensor) -> Tensor:
    return torch.empty(t.shape, dtype=t.dtype, device="meta")


@contextmanager
def restored_afterwards(model: nn.Module) -> Iterator[None]:
    """Restore attributes, lists, dicts and modes of all modules at the end; switch wrappers and compilers off before.

    Weight normalisation and pruning set a weight at every call, and some models keep tensors that they computed.
    """
    modules = list(model.modules())
    kept = [(vars(module), dict(vars(module))) for module in modules]
    holders = [
        held for _, attributes in kept for held in attributes.values() if isinstance(held, dict | list | set | deque)
    ]
    contents = [held.copy() for held in holders]
    for module in modules:
        if isinstance(module, PARALLEL):
            vars(module)["forward"] = module.module
        vars(module)["_compiled_call_impl"] = None
        for number, hook in list(module._forward_pre_hooks.items()):
            if _of_sharding(hook):
                del module._forward_pre_hooks[number]
        for number, hook in list(module._forward_hooks.items()):
            if _of_sharding(hook):
                del module._forward_hooks[number]
    compiled = "torch._dynamo" in sys.modules  # else there is nothing to restore
    try:
        with torch.compiler.set_stance("force_eager") if compiled else nullcontext(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using `torch.compile")  # of hooks, such as those of a FLOP counter
            yield
    finally:
        for module, (_, attributes) in zip(modules, kept, strict=True):
            if type(module).train is not nn.Module.train and module.training != attributes["training"]:
                module.train(
                    attributes["training"]
                )  # train() of some models, such as feature extractors, changes more than the flag
        for held, before in zip(holders, contents, strict=True):
            held.clear()
            held.update(before) if isinstance(held, dict | set) else held.extend(before)  # type: ignore[arg-type]
        for now, attributes in kept:
            now.clear()
            now.update(attributes)


def _of_sharding(hook: Any) -> bool:
    """Return True for a hook that gathers parameters sharded over several processes."""
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed.")


class MatchingTensors(TorchFunctionMode):
    """Move the tensors of a call to the meta device if one of them is there, and to one dtype if the call fails else.

    Integers and truth values stay on their device as long as possible, because they may index.
    """

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in CREATES:
            kwargs.setdefault("device", "meta")
            return func(*args, **kwargs)
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if not any(t.is_meta for t in tensors) or len(tensors) == 1:
            return func(*args, **kwargs)
        met: Any = tree_map_only(Tensor, lambda t: _to_meta(t) if _is_computed(t) else t, (args, kwargs))
        try:
            return func(*met[0], **met[1])
        except (RuntimeError, TypeError):
            dtypes = {t.dtype for t in tensors if _is_computed(t)}
            if all(t.is_meta or _is_computed(t) for t in tensors) and len(dtypes) < 2:
                raise
        dtype = reduce(torch.promote_types, dtypes) if dtypes else torch.float32
        alike: Any = tree_map_only(
            Tensor, lambda t: _to_meta(t).to(dtype if _is_computed(t) else t.dtype), (args, kwargs)
        )
        return func(*alike[0], **alike[1])


def _is_computed(t: Tensor) -> bool:
    return t.is_floating_point() or t.is_complex()


def _to_meta(t: Tensor) -> Tensor:
    """Return a tensor on the meta device; one from another device loses its autograd history."""
    return t if t.is_meta else t.detach().to("meta").requires_grad_(t.requires_grad)


def _complaint(model: nn.Module, shape: tuple[int, ...], error: Exception) -> str:
    kind, reason = type(model).__name__, first_line(error)
    if "meta tensor" in str(error).lower() or "meta device" in str(error):
        line = model_line(reversed(list(traceback.walk_tb(error.__traceback__))))
        return f"{kind} needs numbers in its forward{line}, and only shapes are computed here: {reason}"
    return f"{kind} cannot take an input of {' × '.join(map(str, shape))}: {reason}"


def model_line(frames: Iterable[tuple[FrameType, int]], outermost: CodeType | None = None) -> str:
    """Return the innermost line of code of the model itself as text; an empty text if there is none.

    Args:
        frames: frames, innermost first, with the line number in each.
        outermost: function at which the search stops: its callers are not the model.
    """
    for frame, number in frames:
        path = frame.f_code.co_filename
        if frame.f_code is outermost:
            break
        if not path.startswith((TORCH_FOLDER, OWN_FOLDER, "<")):
            return f" ({os.path.basename(path)}:{number}: {linecache.getline(path, number).strip()})"
    return ""


def first_line(error: Exception) -> str:
    """Return the first line of the message of an error."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
