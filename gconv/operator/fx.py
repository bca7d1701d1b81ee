"""Layers as single nodes of torch.fx, for any tracer."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.fx import Proxy, Tracer


def leaf(module: nn.Module, x: Proxy) -> Any:
    """Return a call of ``module`` as one node of a traced program; None if it is the root, which has no name there."""
    assert isinstance(x.tracer, Tracer)
    name = x.tracer.path_of_module(module)
    return x.tracer.create_proxy("call_module", name, (x,), {}) if name else None
