"""Recording of a module's forward pass by torch.fx: every child is one call.

The recording refuses operations that it could not repeat: branches that depend on values or on types of results,
attributes that ``forward`` sets, random numbers drawn in Python, gradient or autocast modes that ``forward`` changes.
As everywhere in torch.fx, global variables that ``forward`` reads are taken as constants.
"""

from __future__ import annotations

import inspect
import random
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node, Proxy, Tracer
from torch.fx.proxy import TraceError

KINDS = (Tensor, list)  # kinds of the arguments of a forward pass
CONSTANTS = (bool, int, float, complex, str, bytes, type(None), type, FunctionType, torch.dtype, torch.device)
CONTAINERS = (list, dict, set)
KEPT_BY_MODULES = frozenset(vars(nn.Module())) - {"training"}  # of a module's attributes, those that torch keeps
NOWHERE = object()
_one_at_a_time = threading.RLock()  # while recording, nn.Module itself is watched


class RecordingError(Exception):
    """``forward`` cannot be recorded; the message gives the reason as the end of a sentence."""


def recordings(module: nn.Module) -> Iterator[Recorder]:
    """Record ``forward`` in each mode and for each kind of arguments that it asks for; raise if none can be."""
    modes, recorded, refusal = {part: part.training for part in module.modules()}, 0, None
    try:
        for kind in KINDS:
            asked = False
            for mode in (True, False):
                for part in modes:
                    part.training = mode
                recorder = Recorder(kind)
                try:
                    recorder.record(module)
                    recorded += 1
                    yield recorder
                except RecordingError as error:
                    refusal = refusal or error
                asked |= recorder.asked_for_kind
                if not any(name == "training" for _, name in recorder.attributes):
                    break
            if recorded and not asked:
                break
    finally:
        for part, mode in modes.items():
            part.training = mode
    if refusal is not None and not recorded:
        raise refusal


class Recorder(Tracer):
    """Records one forward pass: every child is one call, independent of its content.

    Attributes:
        attributes: value of each attribute that ``forward`` read, by the path of its module and its name.
        absent: paths and names that it looked for, and that the object itself did not have; its class may have them,
            ``nn.Module`` has not.
        children: for each module that it read, by its path, the names of its children; None where there is no module.
        arguments: number of its arguments, which are all of ``kind``.
        asked_for_kind: True if ``forward`` asked for the type of one.
    """

    graph: Graph

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind = kind
        self.arguments = 0
        self.asked_for_kind = False
        self.attributes: dict[tuple[str, str], Any] = {}
        self.absent: set[tuple[str, str]] = set()
        self.children: dict[str, tuple[str, ...] | None] = {}
        self._state: tuple = ()

    def record(self, module: nn.Module) -> None:
        """Record ``forward``, with the defaults of all arguments that have one.

        Raises:
            RecordingError: it cannot be recorded.
        """
        cls = type(module)
        parameters = list(inspect.signature(cls.forward).parameters.values())[1:]
        if any(p.kind is not p.POSITIONAL_OR_KEYWORD for p in parameters):
            raise RecordingError("takes arguments of any number or by keyword only")
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        if not all(isinstance(value, CONSTANTS) for value in defaults.values()):
            raise RecordingError("has arguments whose defaults torch.fx does not take")
        self.arguments = len(parameters) - len(defaults)
        parts = {part: path for path, part in module.named_modules()}
        before, draws = {part: dict(vars(part)) for part in parts}, _drawn()
        copies = {
            (part, name): value.copy()
            for part, values in before.items()
            for name, value in values.items()
            if isinstance(value, CONTAINERS) and name not in KEPT_BY_MODULES
        }
        self._state = _modes()
        self.children[""] = tuple(module._modules)
        for (part, name), value in copies.items():
            vars(part)[name] = value
        try:
            with _watched(self, parts):
                self.graph = self.trace(module, defaults or None)
        except RecordingError:
            raise
        except TraceError:
            raise RecordingError("depends on values of tensors") from None
        except Exception as error:
            raise RecordingError(f"is not for torch.fx: {' '.join(str(error).split())[:80]}") from None
        finally:
            for part, values in before.items():
                vars(part).clear()
                vars(part).update(values)
        for (part, name), contents in copies.items():
            if contents != before[part][name]:
                raise RecordingError(f"changes the attribute {named(parts[part], name)}")
        if draws != _drawn():
            raise RecordingError("draws random numbers in Python")

    def read(self, module: nn.Module, path: str, name: str) -> None:
        """Note that ``forward`` reads an attribute of a module at some path."""
        values, children = vars(module), vars(module)["_modules"]
        if name in children:
            child = children[name]
            self.children[named(path, name)] = None if child is None else tuple(child._modules)
        elif name in values:
            if name not in KEPT_BY_MODULES:
                self.attributes[path, name] = constant(values[name], named(path, name))
        elif name not in values["_parameters"] and name not in values["_buffers"] and not hasattr(nn.Module, name):
            self.absent.add((path, name))
            value = getattr(type(module), name, NOWHERE)
            if value is not NOWHERE and not callable(value) and not hasattr(value, "__get__"):  # it is not code
                self.attributes[path, name] = constant(value, named(path, name))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Every child is a leaf."""
        return True

    def proxy(self, node: Node) -> Proxy:
        """Return the object that ``forward`` gets in place of a tensor."""
        return (Argument if node.op == "placeholder" else Result)(node, self)

    def create_arg(self, a: Any) -> Any:
        """Return the argument of a call as it is recorded."""
        return a.node if issubclass(type(a), Proxy) else super().create_arg(a)

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        """Record one call; raise ``RecordingError`` where it runs in another mode than the first."""
        if _modes() != self._state:
            raise RecordingError("changes the gradient mode, autocast or what autograd saves")
        return super().create_node(*args, **kwargs)


class Argument(Proxy):
    """Argument of a forward pass, of the kind that the recording is for."""

    tracer: Recorder

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        self.tracer.asked_for_kind = True
        return self.tracer.kind


class Result(Proxy):
    """Result of a call, whose type is not known."""

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        raise RecordingError("depends on the types of results")


@contextmanager
def _watched(recorder: Recorder, parts: Mapping[nn.Module, str]) -> Iterator[None]:
    """Record the attributes read of some modules inside the block, and refuse to set any.

    The class of a module may not change for that: ``forward`` may compare the types of its children.

    Args:
        recorder: records what is read.
        parts: the modules, with their paths.
    """
    thread, set_attribute = threading.get_ident(), nn.Module.__setattr__

    def is_watched(module: nn.Module) -> bool:
        return threading.get_ident() == thread and module in parts

    def get(self: nn.Module, name: str) -> Any:
        if not name.startswith("__") and is_watched(self):
            recorder.read(self, parts[self], name)
        return object.__getattribute__(self, name)

    def refuse(self: nn.Module, name: str, value: Any) -> None:
        if is_watched(self):
            new = name.startswith("_tensor_constant")  # given to the module by torch.fx
            reason = "makes tensors of its own" if new else f"sets the attribute {named(parts[self], name)}"
            raise RecordingError(reason)
        set_attribute(self, name, value)

    with _one_at_a_time:
        nn.Module.__getattribute__, nn.Module.__setattr__ = get, refuse  # type: ignore[method-assign]
        try:
            yield
        finally:
            del nn.Module.__getattribute__
            nn.Module.__setattr__ = set_attribute  # type: ignore[method-assign]


def named(path: str, name: str) -> str:
    """Return the name of an attribute as ``forward`` writes it, without ``self``."""
    return f"{path}.{name}".lstrip(".")


def constant(value: Any, name: str) -> Any:
    """Return the value of an attribute in a form that later changes do not alter."""
    if isinstance(value, CONSTANTS) or inspect.isbuiltin(value):
        return value
    if isinstance(value, list | tuple):
        return type(value) is list, tuple(constant(item, name) for item in value)
    if isinstance(value, dict):
        return tuple((key, constant(item, name)) for key, item in value.items())
    raise RecordingError(f"reads the attribute {name}, of type {type(value).__name__}")


def _drawn() -> tuple:
    """Return the state of the generators that a forward pass may draw from."""
    numpy = sys.modules.get("numpy")
    state = None if numpy is None else numpy.random.get_state()
    return random.getstate(), None if state is None else (state[1].tobytes(), state[2]), torch.get_rng_state().tolist()


def _modes() -> tuple:
    """Return the modes that torch.fx does not record."""
    devices = ("cpu", "cuda")
    saving = torch._C._autograd._top_saved_tensors_default_hooks(False)  # type: ignore[attr-defined]
    casts = tuple((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices)
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), saving, *casts
