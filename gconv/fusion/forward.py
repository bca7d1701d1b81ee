"""Forward passes in which each sequence of convolution, batch normalisation and ReLU is one call.

A *run* is such a sequence in the ``forward`` of a module that calls its children by name. torch.fx records what
``forward`` does with the children. The record is a list of calls without branches. One call of ``run_block`` replaces
each run in it, and the list becomes a function that takes the place of ``forward``. The function is valid while the
mode, the attributes that ``forward`` read, the children and the kind of the arguments are those of the recording.
Otherwise the module's own ``forward`` is called.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import cache, wraps
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node, Proxy
from torch.nn import functional as F

from gconv.block import RELU, Run, run_at, run_block
from gconv.conv import CONVOLUTIONS
from gconv.fusion.recording import RecordingError, constant, recordings

FUNCTIONAL_RELUS = (F.relu, torch.relu, torch.relu_, "relu", "relu_")

NAMES_OF_FX = Graph().python_code("self").globals


@dataclass(frozen=True, eq=False)
class FusedForward:
    """A forward pass with its runs fused, and the conditions under which it is valid.

    Attributes:
        kind: kind of all its arguments: tensors, or lists.
        arguments: number of arguments.
        attributes, absent, children: what ``forward`` read, as in ``Recorder``.
        runs: names of the modules of each run, as the module calls them; "relu()" for a ReLU called as a function.
        source: Python source of the function.
        names: global names that the function uses, without those that torch.fx always gives.
    """

    kind: type
    arguments: int
    attributes: Mapping[tuple[str, str], Any]
    absent: Set[tuple[str, str]]
    children: Mapping[str, tuple[str, ...] | None]
    runs: tuple[tuple[str, ...], ...]
    source: str
    names: Mapping[str, Any]
    call: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        names = {**NAMES_OF_FX, **self.names}
        exec(compile(self.source, "<fused forward>", "exec"), names)
        object.__setattr__(self, "call", names["forward"])

    def __reduce__(self) -> tuple:
        given = (self.kind, self.arguments, self.attributes, self.absent, self.children)
        return FusedForward, (*given, self.runs, self.source, self.names)

    def __deepcopy__(self, memo: Any) -> FusedForward:
        return self

    def holds(self, module: nn.Module, arguments: Sequence[Any]) -> bool:
        """Return True if the module and the arguments are as in the recording."""
        if len(arguments) != self.arguments:
            return False
        for argument in arguments:
            if not isinstance(argument, self.kind) or isinstance(argument, Proxy):
                return False
        for path, names in self.children.items():
            part = _part(module, path)
            if (None if part is None else tuple(part._modules)) != names:
                return False
        for path, name in self.absent:
            part = _part(module, path)
            if part is None or any(name in of for of in (vars(part), part._modules, part._parameters, part._buffers)):
                return False
        try:
            for (path, name), value in self.attributes.items():
                if constant(getattr(_part(module, path), name, None), name) != value:
                    return False
        except RecordingError:  # a type that no recording takes
            return False
        return True


def _part(module: nn.Module, path: str) -> Any:
    """Return the module at a path; None if there is none."""
    part: nn.Module | None = module
    for name in path.split(".") if path else ():
        part = None if part is None else part._modules.get(name)
    return part


def fused_forwards(module: nn.Module) -> tuple[list[FusedForward], dict[str, str]]:
    """Record the forward pass of a module in both modes.

    Args:
        module: with a ``forward`` in Python; unchanged on return.

    Returns:
        The passes that have runs, and why each other convolution that the module calls is in none, by its name.

    Raises:
        RecordingError: the forward pass cannot be recorded.
    """
    forwards, reasons = [], {}
    for recorder in recordings(module):
        runs, why = _fuse_runs(recorder.graph, module)
        reasons |= why
        if runs:
            code = recorder.graph.python_code("self")
            given = recorder.kind, recorder.arguments, recorder.attributes, recorder.absent, recorder.children
            names = {name: value for name, value in code.globals.items() if name not in NAMES_OF_FX}
            forwards.append(FusedForward(*given, tuple(runs), code.src, names))
    fused = {name for forward in forwards for run in forward.runs for name in run}
    return forwards, {name: reason for name, reason in reasons.items() if name not in fused}


def _fuse_runs(graph: Graph, module: nn.Module) -> tuple[list[tuple[str, ...]], dict[str, str]]:
    """Replace each run of a graph by a call of ``run_block``; return their names, and why other convolutions stay."""
    calls = Counter(id(module.get_submodule(str(n.target))) for n in graph.nodes if n.op == "call_module")
    runs, reasons = [], {}
    for node in list(graph.nodes):
        conv = _called(node, module)
        if not isinstance(conv, CONVOLUTIONS):
            continue
        name = str(node.target)
        chain = [node, *_readers(node)]
        run = run_at([_called(n, module) for n in chain], 0)
        if calls[id(conv)] > 1:
            reasons[name] = "it is called more than once"
        elif run is None:
            reasons[name] = _why_not(node, module)
        elif run[1] is not None and calls[id(run[1])] > 1:
            reasons[name] = "its batch normalisation is called more than once"
        elif len(node.args) != 1 or node.kwargs:
            reasons[name] = "it is called with more than its input"
        else:
            chain = chain[: sum(part is not None for part in run)]
            runs.append(tuple(str(n.target) if n.op == "call_module" else "relu()" for n in chain))
            _replace(graph, chain, run)
    graph.lint()
    return runs, reasons


def _replace(graph: Graph, chain: list[Node], run: Run) -> None:
    """Insert one call in place of the convolution, before any other call can change its input."""
    with graph.inserting_before(chain[0]):
        norm = 1 if run[1] is not None else None
        relu = len(chain) - 1 if run[2] is not None else None
        modules = [_module_node(graph, None if at is None else chain[at]) for at in (0, norm, relu)]
        call = graph.call_function(run_block, (chain[0].args[0], *modules))
    chain[-1].replace_all_uses_with(call)
    for node in reversed(chain):
        graph.erase_node(node)


def _module_node(graph: Graph, call: Node | None) -> Node | None:
    if call is None:
        return None
    if call.op == "call_module":
        return graph.create_node("get_attr", str(call.target))
    return graph.call_function(_relu)


def _relu() -> nn.ReLU:
    return RELU


def _readers(node: Node) -> Iterator[Node]:
    """Return the calls that read a result, each the only reader of the one before, and read nothing else."""
    while len(node.users) == 1:
        reader = next(iter(node.users))
        if reader.args[:1] != (node,) or len(reader.all_input_nodes) != 1:
            return
        yield reader
        node = reader


def _called(node: Node, module: nn.Module) -> nn.Module | None:
    """Return the module that a node calls; a ReLU if it calls that as a function."""
    if node.op == "call_module":
        return module.get_submodule(str(node.target))
    return RELU if node.op in ("call_function", "call_method") and node.target in FUNCTIONAL_RELUS else None


def _why_not(node: Node, module: nn.Module) -> str:
    conv = _called(node, module)
    if type(conv) not in CONVOLUTIONS:
        return f"{type(conv).__name__} is neither Conv2d nor GroupedConv2d"
    if len(node.users) > 1:
        return "its output is read more than once"
    reader = next(iter(node.users), None)
    if reader is None or reader.op == "output":
        return "nothing in forward follows it"
    return not_fused(_called(reader, module) or str(getattr(reader.target, "__name__", reader.target)))


def not_fused(follower: nn.Module | str) -> str:
    """Return the reason for a convolution followed by a module that is neither a batch normalisation nor a ReLU."""
    name = follower if isinstance(follower, str) else type(follower).__name__
    return f"{name} follows it, neither BatchNorm2d nor ReLU"


class FusesForward(nn.Module):
    """Base of a module's class once its forward pass has fused runs; see ``fused_class``."""

    _fused_forwards: tuple[FusedForward, ...] = ()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle and copy as an object of the class that the module had."""
        _, _, *state = super().__reduce_ex__(protocol)
        return _of_fused_class, (own_class(self),), *state

    def __prepare_scriptable__(self) -> nn.Module:
        """Give ``torch.jit.script`` the module with its own ``forward``."""
        own = own_class(self)
        module = own.__new__(own)
        kept = {name: value for name, value in vars(self).items() if name != "_fused_forwards"}
        vars(module).update(kept, _modules=self._modules.copy())  # torch replaces the children of its argument
        return module


def own_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that a module had before its forward pass was fused."""
    return type(module).__bases__[1] if isinstance(module, FusesForward) else type(module)


@cache
def fused_class(own: type[nn.Module]) -> type[nn.Module]:
    """Return a subclass of a module's class: ``forward`` is the first of its fused ones that holds, else its own."""

    @wraps(own.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not kwargs and not torch.compiler.is_exporting() and not torch.jit.is_tracing():  # type: ignore[attr]
            for fused in self._fused_forwards:
                if fused.holds(self, args):
                    return fused.call(self, *args)
        return own.forward(self, *args, **kwargs)

    names = {"forward": forward, "__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
    return type(own.__name__, (FusesForward, own), names)


def _of_fused_class(own: type[nn.Module]) -> nn.Module:
    cls = fused_class(own)
    return cls.__new__(cls)
