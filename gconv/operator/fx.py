"""Layers as torch.fx sees them: one node each, whatever a tracer knows of them."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Proxy, Tracer


def leaf(module: nn.Module, x: Proxy) -> Any:
    """A call of ``module`` as one node of what torch.fx traces; None if it is the root, which has no name there."""
    assert isinstance(x.tracer, Tracer)
    name = x.tracer.path_of_module(module)
    return x.tracer.create_proxy("call_module", name, (x,), {}) if name else None
