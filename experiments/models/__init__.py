"""The architectures, one readable file each: a function of typed arguments that returns a module.

Every grouped layer takes any partition: ``4``, ``"log:4"``, ``"4:2:1:1"``. To add one, write its file and name it here.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from experiments.errors import UsageError
from experiments.nearest import hint

# Of each model, the file in this folder and the function in it have its name; the number is the height and width of
# the images that its paper counts costs for.
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
    """The function that builds the model called ``name``.

    Raises:
        UsageError: there is no such model; names those there are.
    """
    if name not in MODELS:
        raise UsageError(f"model.name={name}: no such model; {hint(str(name), MODELS)}")
    return getattr(importlib.import_module(f"experiments.models.{name}"), name)


def build_model(name: str, input_size: int | None = None, **arguments: Any) -> nn.Module:
    """Build a model; what its arguments cannot be is an error of one line.

    Args:
        name: of the model.
        input_size: height and width of the images, for the models whose layers depend on it.
        arguments: of the model's function.

    Raises:
        UsageError: no such model, or arguments that no network can have (groups that cannot cut the channels).
    """
    builder = model_builder(name)
    if input_size is not None and "input_size" in inspect.signature(builder).parameters:
        arguments["input_size"] = input_size
    try:
        return builder(**arguments)
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"model {name}: {str(error).splitlines()[0]}") from None
