"""A model that the command line names: one of the suite with its arguments as flags, or one of torchvision's."""

from __future__ import annotations

from difflib import get_close_matches

from jsonargparse import ArgumentParser, Namespace
from torch import nn

from experiments.errors import UsageError
from experiments.models import MODELS, build_model, model_builder
from experiments.vision import import_torchvision

TORCHVISION = "torchvision:"


def add_model_arguments(parser: ArgumentParser, name: str) -> None:
    """Add the flags of the model called ``name``, and ``--input_size``.

    Raises:
        UsageError: there is no such model; names those there are.
    """
    size = 224
    if not name.startswith(TORCHVISION):
        try:
            builder = model_builder(name)
        except UsageError as error:
            raise UsageError(f"{error}, and {TORCHVISION}NAME") from None
        parser.add_function_arguments(builder, "model", skip={"input_size"})
        size = MODELS[name]
    parser.add_argument("--input_size", type=int, default=size, help="Height and width of the image in pixels.")


def build_named_model(name: str, given: Namespace) -> nn.Module:
    """Build the model called ``name`` as the flags say.

    Raises:
        UsageError: torchvision has no such model, an input size below 1, arguments that no network can have.
    """
    if given.input_size < 1:
        raise UsageError(f"--input_size={given.input_size}: must be at least 1")
    if not name.startswith(TORCHVISION):
        return build_model(name, given.input_size, **(vars(given.model) if "model" in given else {}))
    models, model = import_torchvision().models, name.removeprefix(TORCHVISION)
    known = models.list_models(module=models)
    if model not in known:
        near = get_close_matches(model, known, n=1)
        hint = f"; did you mean {TORCHVISION}{near[0]}?" if near else f"; there are: {', '.join(known)}"
        raise UsageError(f"MODEL={name}: torchvision has no such classifier{hint}")
    return models.get_model(model)
