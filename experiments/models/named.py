"""A model that the command line names: one of the suite with its arguments as flags, or torchvision's, or timm's."""

from __future__ import annotations

import importlib
from difflib import get_close_matches
from types import ModuleType

from jsonargparse import ArgumentParser, Namespace
from torch import nn

from experiments.errors import UsageError
from experiments.models import MODELS, build_model, model_builder
from experiments.vision import import_torchvision

TORCHVISION = "torchvision:"
TIMM = "timm:"


def full_name(name: str) -> str:
    """Return the full name of a model: ``torchvision:resnet50`` for ``resnet50``, which the suite has not.

    Raises:
        UsageError: there is no such model; gives the nearest names.
    """
    if name in MODELS:
        return name
    if name.startswith(TIMM):
        models, known = import_timm(name).list_models(), name.removeprefix(TIMM)
        if known not in models:
            near = get_close_matches(known, models, n=3)
            hint = f"did you mean {', '.join(TIMM + one for one in near)}?" if near else "timm.list_models() names them"
            raise UsageError(f"{name}: timm has no such model; {hint}")
        return name
    models = import_torchvision().models
    classifiers = models.list_models(module=models)
    if name.removeprefix(TORCHVISION) in classifiers:
        return TORCHVISION + name.removeprefix(TORCHVISION)
    near = get_close_matches(name.removeprefix(TORCHVISION), [*MODELS, *classifiers], n=1)
    there = (
        f"did you mean {near[0] if near[0] in MODELS else TORCHVISION + near[0]}? There are:" if near else "there are:"
    )
    raise UsageError(f"{name}: no such model; {there} {', '.join(MODELS)}, and {TORCHVISION}NAME and {TIMM}NAME")


def import_timm(name: str) -> ModuleType:
    """Import timm for the model of this full name.

    Raises:
        UsageError: timm is not installed.
    """
    import_torchvision()  # timm imports torchvision, which may not fit the installed torch
    try:
        return importlib.import_module("timm")
    except ImportError:
        raise UsageError(f"{name}: needs timm, which is not installed here; pip install timm") from None


def add_model_arguments(parser: ArgumentParser, name: str) -> None:
    """Add the flags of the model of this full name, and ``--input_size``."""
    size = 224
    if name in MODELS:
        parser.add_function_arguments(model_builder(name), "model", skip={"input_size"})
        size = MODELS[name]
    parser.add_argument("--input_size", type=int, default=size, help="Height and width of the image in pixels.")


def build_named_model(name: str, given: Namespace) -> nn.Module:
    """Build the model of this full name from its flags.

    Raises:
        UsageError: an input size below 1, arguments that no network can have.
    """
    if given.input_size < 1:
        raise UsageError(f"--input_size={given.input_size}: must be at least 1")
    if name.startswith(TIMM):
        return import_timm(name).create_model(name.removeprefix(TIMM))
    if not name.startswith(TORCHVISION):
        return build_model(name, given.input_size, **(vars(given.model) if "model" in given else {}))
    return import_torchvision().models.get_model(name.removeprefix(TORCHVISION))
