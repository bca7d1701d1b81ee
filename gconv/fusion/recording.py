"""Recording of a module's forward pass by torch.fx: every child is one call.

The recording refuses operations that it could not repeat: branches that depend on values or on types of results,
attributes that ``forward`` sets, random numbers drawn in Python, gradient or autocast modes that ``forward`` changes.
As everywhere in torch.fx, global variables that ``forward`` reads are taken as constants.
"""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Iterator
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


class RecordingError(Exception):
    """``forward`` cannot be recorded; the message gives the reason as the end of a sentence."""


def recordings(module: nn.Module) -> Iterator[Recorder]:
    """Record ``forward`` in each mode and for each kind of arguments that it asks for; raise if none can be."""
    mode, recorded, refusal = module.training, 0, None
    try:
        for kind in KINDS:
            asked = False
            for module.training in (True, False):
                recorder = Recorder(kind)
                try:
                    recorder.record(module)
                    recorded += 1
                    yield recorder
                except RecordingError as error:
                    refusal = refusal or error
                asked |= recorder.asked_for_kind
                if "training" not in recorder.attributes:
                    break
            if recorded and not asked:
                break
    finally:
        module.training = mode
    if refusal is not None and not recorded:
        raise refusal


class Recorder(Tracer):
    """Records one forward pass: every child is one call, independent of its content.

    Attributes:
        attributes: value of each attribute that ``forward`` read.
        children: for each child that it read, the names of its own children; None where there is no child.
        arguments: number of its arguments, which are all of ``kind``.
        asked_for_kind: True if ``forward`` asked for the type of one.
    """

    graph: Graph

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind = kind
        self.arguments = 0
        self.asked_for_kind = False
        self.attributes: dict[str, Any] = {}
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
        before, draws = dict(vars(module)), _drawn()
        copies = {n: v.copy() for n, v in before.items() if isinstance(v, CONTAINERS) and n not in KEPT_BY_MODULES}
        self._state = _modes()
        vars(module).update(copies)
        module.__class__ = _watched(cls, self)
        try:
            self.graph = self.trace(module, defaults or None)
        except RecordingError:
            raise
        except TraceError:
            raise RecordingError("depends on values of tensors") from None
        except Exception as error:
            raise RecordingError(f"is not for torch.fx: {' '.join(str(error).split())[:80]}") from None
        finally:
            object.__setattr__(module, "__class__", cls)
            vars(module).clear()
            vars(module).update(before)
        for name, contents in copies.items():
            if contents != before[name]:
                raise RecordingError(f"changes the attribute {name}")
        if draws != _drawn():
            raise RecordingError("draws random numbers in Python")

    def read(self, module: nn.Module, name: str) -> None:
        """Note that ``forward`` reads an attribute of its module."""
        if name in module.__dict__["_modules"]:
            child = module.__dict__["_modules"][name]
            self.children[name] = None if child is None else tuple(child._modules)
        elif name in module.__dict__ and name not in KEPT_BY_MODULES:
            self.attributes[name] = constant(module.__dict__[name], name)

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


def _watched(cls: type, recorder: Recorder) -> type:
    """Return a subclass of a module's class that records the attributes read, and refuses to set any."""

    class Watched(cls):  # type: ignore[misc, valid-type]
        def __getattribute__(self, name: str) -> Any:
            if not name.startswith("__"):
                recorder.read(self, name)
            return super().__getattribute__(name)

        def __setattr__(self, name: str, value: Any) -> None:
            new = name.startswith("_tensor_constant")  # given to the module by torch.fx
            raise RecordingError("makes tensors of its own" if new else f"sets the attribute {name}")

    return Watched


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
