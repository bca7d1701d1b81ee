"""Evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation mode inside the block; afterwards each of its modules has its own mode again.

    Args:
        model: any module; parts of it may be in training mode and parts in evaluation mode.
    """
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:  # one by one: ``model.train`` sets all parts alike
            module.training = training
