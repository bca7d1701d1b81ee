"""Architectures, one file each: a function of typed arguments that returns a module.

Every grouped layer takes any partition: ``4``, ``"log:4"``, ``"4:2:1:1"``. A new architecture is a file and a line in
``MODELS``.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from experiments.errors import UsageError
from experiments.name_hints import hint

# File and function of each model have its name; the number is the height and width in pixels of the images for which
# its paper counts costs.
MODELS = {
    "alexnet": 227,
    "lognet": 32,
    "mobilenet": 224,
    "nin": 32,
    "resnext": 224,
    "shufflenet": 224,
    "small": 32,
    "widen": 32,
}


def model_builder(name: str) -> Callable[..., nn.Module]:
    """Return the function that builds a model.

    Raises:
        UsageError: there is no model of this name; gives the names that exist.
    """
    if name not in MODELS:
        raise UsageError(f"model.name={name}: no such model; {hint(str(name), MODELS)}")
    return getattr(importlib.import_module(f"experiments.models.{name}"), name)


def build_model(name: str, input_size: int | None = None, **arguments: Any) -> nn.Module:
    """Build a model.

    Args:
        name: name of the model.
        input_size: height and width of the images, for the models whose layers depend on it.
        arguments: arguments of the model's function.

    Raises:
        UsageError: there is no model of this name, or it cannot be built, for instance because the groups cannot cut
            the channels; one line.
    """
    builder = model_builder(name)
    if input_size is not None and "input_size" in inspect.signature(builder).parameters:
        arguments["input_size"] = input_size
    try:
        return builder(**arguments)
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"model {name}: {str(error).splitlines()[0]}") from None
