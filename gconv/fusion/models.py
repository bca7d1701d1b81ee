"""Fusion of the convolutions of an existing model with the batch normalisation and ReLU that follow them.

Sequentials become ``Block``. Other modules that call convolutions by name get a forward pass in which each run of
convolution, batch normalisation and ReLU is one call (``gconv.fusion.forward``). Parameters, buffers, names, modes,
hooks and export do not change.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from gconv.block import Block, run_at
from gconv.conv import CONVOLUTIONS
from gconv.fusion.forward import fused_class, fused_forwards, not_fused, own_class
from gconv.fusion.recording import RecordingError
from gconv.wiring.text_table import aligned

MOST_ROWS, MOST_NAMES = 18, 6  # most rows of the printed summary, and names in a row


@dataclass(frozen=True)
class Fused:
    """A model with the runs that it computes together.

    Attributes:
        model: the model.
        blocks: names of the modules of each run, by the name of the module that calls them; "relu()" for a ReLU called
            as a function.
        skipped: reason for each convolution that is in no run, by name.
    """

    model: nn.Module
    blocks: Mapping[str, tuple[tuple[str, ...], ...]]
    skipped: Mapping[str, str]

    def __str__(self) -> str:
        """Return one line per module with runs, then the other convolutions by reason."""
        rows = [
            [name or type(self.model).__name__, ", ".join(map(" + ".join, runs))] for name, runs in self.blocks.items()
        ]
        count = sum(map(len, self.blocks.values()))
        lines = [aligned(["module", "computed together"], rows, texts=2, max_rows=MOST_ROWS)] if rows else []
        lines.append(f"{count} of {count + len(self.skipped)} convolutions computed together with what follows them")
        for reason in dict.fromkeys(self.skipped.values()):
            names = [name for name, why in self.skipped.items() if why == reason]
            more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
            lines.append(f"{len(names)} not, {reason}: {', '.join(names[:MOST_NAMES])}{more}")
        return "\n".join(lines)


def fuse(model: nn.Module) -> Fused:
    """Change a model so that it computes convolution, batch normalisation and ReLU together where that is faster.

    The model itself is changed. Its Sequentials become ``Block``. Modules that call a convolution, a normalisation and
    a ReLU by name get a subclass of their class. The three are fused if only the normalisation reads the output of the
    convolution, and only the ReLU that of the normalisation.

    Args:
        model: any module, also of torchvision or timm; it may be fused again.

    Raises:
        TypeError: ``model`` is no module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fuse takes a torch.nn.Module, not {reprlib.repr(model)}")
    blocks: dict[str, tuple[tuple[str, ...], ...]] = {}
    skipped: dict[str, str] = {}
    for name, module in model.named_modules():
        if _is_sequential(module):
            runs = tuple(_runs(module))
            if runs:
                module.__class__ = Block
            convolutions = [child for child, conv in module.named_children() if isinstance(conv, CONVOLUTIONS)]
            reasons = {child: _reason(module, child) for child in convolutions}
        elif any(isinstance(child, CONVOLUTIONS) for _, child in _callable_by(module)):
            runs, reasons = _fuse_forward(module)
        else:
            continue
        if runs:
            blocks[name] = runs
        inside = {child for run in runs for child in run}
        skipped |= {f"{name}.{child}".lstrip("."): why for child, why in reasons.items() if child not in inside}
    return Fused(model, blocks, skipped)


def _fuse_forward(module: nn.Module) -> tuple[tuple[tuple[str, ...], ...], dict[str, str]]:
    """Fuse the forward pass of a module; return its runs, and why each other convolution is in none."""
    convolutions = [name for name, child in _callable_by(module) if isinstance(child, CONVOLUTIONS)]
    module.__class__ = own_class(module)
    vars(module).pop("_fused_forwards", None)
    kind = type(module).__name__
    if "forward" in vars(module):
        return (), dict.fromkeys(convolutions, f"{kind} has a forward of its own object")
    try:
        forwards, reasons = fused_forwards(module)
    except RecordingError as error:
        return (), dict.fromkeys(convolutions, f"{kind}.forward {error}")
    if forwards:
        module.__class__ = fused_class(type(module))
        vars(module)["_fused_forwards"] = tuple(forwards)
    runs = tuple(dict.fromkeys(run for forward in forwards for run in forward.runs))
    uncalled = dict.fromkeys(convolutions, f"{kind}.forward does not call it")
    return runs, uncalled | reasons


def _callable_by(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Return the children of a module, and those of the lists and dictionaries among them."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _callable_by(child, f"{prefix}{name}.")
        else:
            yield prefix + name, child


def _is_sequential(module: nn.Module) -> bool:
    """Return True for a Sequential and no more: a subclass keeps its class, by which others may know it."""
    return type(module) in (nn.Sequential, Block) and "forward" not in module.__dict__


def _runs(sequential: nn.Module) -> Iterator[tuple[str, ...]]:
    """Yield the names of the modules of each run."""
    names, modules = zip(*sequential.named_children(), strict=True) if len(sequential._modules) else ((), ())
    for at in range(len(modules)):
        run = run_at(modules, at)
        if run is not None:
            yield names[at : at + sum(module is not None for module in run)]


def _reason(sequential: nn.Module, name: str) -> str:
    names = [child for child, _ in sequential.named_children()]
    conv, follower = sequential._modules[name], names.index(name) + 1
    if type(conv) not in CONVOLUTIONS:
        return f"{type(conv).__name__} is neither Conv2d nor GroupedConv2d"
    if follower == len(names):
        return "it is the last of its Sequential"
    return not_fused(list(sequential.children())[follower])
